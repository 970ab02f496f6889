"""Pairs read back from an encoder-decoder's batch, with what the batch promises checked on the way."""

import torch
from objectives.packed_text import EOS, PAD, VOCAB_SIZE, split_row


START = 4
IDS = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": START}


def read_plain(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Input and target of each row."""
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(values.dtype == torch.long for values in batch.values())
    pairs = []
    for tokens, mask, labels in zip(*(batch[n] for n in ("input_ids", "attention_mask", "labels")), strict=True):
        num_tokens, num_labels = int(mask.sum()), int((labels != -100).sum())
        assert mask[:num_tokens].all()
        assert (tokens[num_tokens:] == PAD).all()
        assert (labels[num_labels:] == -100).all()
        pairs.append((tokens[:num_tokens].tolist(), labels[:num_labels].tolist()))
    # no longer than the longest
    assert max(len(source) for source, _ in pairs) == batch["input_ids"].shape[1]
    assert max(len(target) for _, target in pairs) == batch["labels"].shape[1]
    return pairs


def read_packed(batch: dict) -> list[list[tuple[list[int], list[int]]]]:
    """Input and target of each document of each row, padding left out."""
    names = {"input_ids", "position_ids", "labels", "decoder_input_ids", "decoder_position_ids"}
    assert set(batch) == names
    assert all(values.dtype == torch.long for values in batch.values())
    rows, ends_in_padding = [], []
    for index in range(len(batch["input_ids"])):
        row = {name: values[index] for name, values in batch.items()}
        sources = split_row(row["input_ids"], row["position_ids"])
        targets = split_row(row["labels"], row["decoder_position_ids"])
        decoder_inputs = split_row(row["decoder_input_ids"], row["decoder_position_ids"])
        assert len(sources) == len(targets)
        is_padding = [set(target) == {-100} for target in targets]
        assert not any(is_padding[:-1])
        ends_in_padding.append(is_padding[-1])
        if is_padding[-1]:
            assert set(sources.pop()) == {PAD}
            assert set(decoder_inputs.pop()) == {PAD}
            targets.pop()
        for target, read in zip(targets, decoder_inputs, strict=True):
            assert read == [START, *target[:-1]]
        rows.append(list(zip(sources, targets, strict=True)))
    assert len(set(ends_in_padding)) == 1
    return rows
