"""Documents that tests make themselves, and their rows: every token of a document is another one, so that order shows."""

import torch


VOCAB_SIZE, PAD, EOS, BOS, MASK, NUM_SPECIAL = 400, 0, 1, 2, 3, 40
SENTINELS = list(range(39, 9, -1))  # 30 of them, descending, as <extra_id_0> … are


def make_document(length: int, generator: torch.Generator, ends: bool = True) -> list[int]:
    """`length` tokens, the last the end token if `ends`; the others are ordinary and all different."""
    body = (torch.randperm(VOCAB_SIZE - NUM_SPECIAL, generator=generator)[: length - ends] + NUM_SPECIAL).tolist()
    return body + [EOS] * ends


def make_documents(seed: int, lengths=(1, 2, 3, 5, 8, 13, 21, 40, 64, 101)) -> list[list[int]]:
    """Documents of these lengths in random order, each third without an end token, as packing cuts them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    return [make_document(lengths[i], generator, ends=n % 3 != 2) for n, i in enumerate(order)]


def pack(documents: list[list[int]], num_padding: int = 0) -> dict[str, list[int]]:
    """One row of these documents, with that much padding at its end."""
    segments = [*documents, [PAD] * num_padding]
    return {
        "input_ids": [token for segment in segments for token in segment],
        "position_ids": [index for segment in segments for index in range(len(segment))],
    }


def split_row(input_ids, position_ids) -> list[list[int]]:
    """The segments of a row (T,), padding included."""
    segments: list[list[int]] = []
    for token, position in zip(input_ids.tolist(), position_ids.tolist(), strict=True):
        if position == 0:
            segments.append([])
        assert position == len(segments[-1])
        segments[-1].append(token)
    return segments


def equal_batches(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
