"""Pack documents of any length into rows of one length, in which the documents stay apart.

Legend: a row is `row_length` tokens; a segment is a document, a piece of one, or the padding. Position ids restart at 0
at every segment, and the attention reads the borders from them (`attention_mask=None`). Labels equal the input ids
except -100 on padding and on the first token of each segment, which another document would have to predict.
"""

import hashlib
import json
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as SequenceFeature
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase


PACKING_STRATEGIES = ("split", "best_fit")
IGNORED_LABEL = -100

# Part of every cache name: raise it when the rows that a call gives change.
_ROWS_VERSION = 1
_ROW_FEATURES = Features(
    {
        "input_ids": SequenceFeature(Value("int32")),
        "position_ids": SequenceFeature(Value("int32")),
        "labels": SequenceFeature(Value("int32")),
    }
)


def pack_documents(
    documents: Iterable[Sequence[int]],
    *,
    row_length: int,
    strategy: str = "split",
    eos_token_id: int,
    pad_token_id: int,
    bos_token_id: int | None = None,
    buffer_size: int = 1000,
    overlap: int = 0,
) -> Iterator[dict[str, list[int]]]:
    """Yield rows `{"input_ids", "position_ids", "labels"}` of exactly `row_length` tokens each.

    Every document gets `eos_token_id` appended. `split` lays the documents end to end and cuts: only the last row is
    padded, and what is left of a cut document opens the next row as a segment of its own. `best_fit` cuts only
    documents longer than a row, into row-sized pieces, then takes the pieces of `buffer_size` documents from the
    longest to the shortest and puts each into the row with the least space that still holds it; what stays free is
    padded.

    A document that `split` has cut goes on in the next row without its past, and the first token there is predicted by
    nothing. With an `overlap` it goes on by repeating its last so many tokens, with the label -100: every token but a
    document's first is then predicted exactly once, from at least `overlap` tokens.

    A row in which nothing is predicted, such as one with the end token of a cut document alone, is left out: a batch of
    such rows has no loss.

    Documents are pulled as rows are asked for. In memory: one row and one document for `split`; for `best_fit`,
    fewer than `buffer_size * row_length` tokens. Time: O(tokens), plus O(log row_length) a document for `best_fit`.

    Args:
        documents: token ids, one sequence a document; an empty one still gives its end token.
        row_length: tokens a row.
        bos_token_id: put before every document if given. Without it the model never learns to predict the first
            token of a document.
        buffer_size: documents among which `best_fit` chooses.
        overlap: tokens of a cut document that the next row repeats (`split` only).

    Raises:
        ValueError: an argument outside its range, at the call.

    Source: Ding et al., 2024, arXiv 2404.10830, section 3 (best-fit packing).
    """
    _check_packing(row_length, strategy, overlap)
    if buffer_size < 1:
        raise ValueError(f"buffer_size: {buffer_size} must be at least 1 document")
    terminated = _terminate(documents, eos_token_id, bos_token_id)
    if strategy == "split":
        rows = _split_rows(terminated, row_length, overlap)
    else:
        rows = ((segments, 0) for segments in _best_fit_rows(terminated, row_length, buffer_size))
    positions = list(range(row_length))
    built = (_build_row(segments, positions, pad_token_id, num_repeated) for segments, num_repeated in rows)
    return (row for row in built if any(label != IGNORED_LABEL for label in row["labels"]))


def _check_packing(row_length: int, strategy: str, overlap: int) -> None:
    if row_length < 2:
        raise ValueError(f"row_length: {row_length} must be at least 2 tokens, one to read and one to predict")
    if strategy not in PACKING_STRATEGIES:
        raise ValueError(f"strategy: '{strategy}' is not one of {', '.join(PACKING_STRATEGIES)}")
    if not 0 <= overlap < row_length:
        raise ValueError(f"overlap: {overlap} must be at least 0 tokens and below row_length {row_length}")
    if overlap and strategy != "split":
        raise ValueError(f"overlap: {overlap} is for strategy split only; with {strategy} leave it out")


def _terminate(documents: Iterable[Sequence[int]], eos_token_id: int, bos_token_id: int | None) -> Iterator[list[int]]:
    start = [] if bos_token_id is None else [bos_token_id]
    for document in documents:
        yield [*start, *document, eos_token_id]


def _split_rows(documents: Iterator[list[int]], row_length: int, overlap: int) -> Iterator[tuple[list[list[int]], int]]:
    """The segments of each row, and how many tokens of the first are repeated from the row before."""
    segments, free, num_repeated = [], row_length, 0
    for document in documents:
        start = 0
        while start < len(document):
            segment = document[start : start + free]
            segments.append(segment)
            start += len(segment)
            free -= len(segment)
            if free == 0:
                yield segments, num_repeated
                segments, free, num_repeated = [], row_length, 0
                if start < len(document):
                    # no more than there are: a document that began just before the border
                    num_repeated = min(overlap, start)
                    start -= num_repeated
    if segments:
        yield segments, num_repeated


def _best_fit_rows(documents: Iterator[list[int]], row_length: int, buffer_size: int) -> Iterator[list[list[int]]]:
    pieces, num_documents = [], 0
    for document in documents:
        num_full = len(document) // row_length
        for index in range(num_full):
            yield [document[index * row_length : (index + 1) * row_length]]
        if rest := document[num_full * row_length :]:
            pieces.append(rest)
        num_documents += 1
        if num_documents == buffer_size:
            yield from _fill_rows(pieces, row_length)
            pieces, num_documents = [], 0
    yield from _fill_rows(pieces, row_length)


def _fill_rows(pieces: list[list[int]], row_length: int) -> Iterator[list[list[int]]]:
    for row in best_fit([len(piece) for piece in pieces], row_length):
        yield [pieces[number] for number in row]


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: the numbers of the pieces of each row, pieces and rows in the order of the pieces.

    Args:
        lengths: tokens of each piece, from 1 to `row_length`.
    """
    # `rows` hold the numbers of their pieces, `spaces` the sorted free spaces of open rows
    rows, open_rows, spaces = [], defaultdict(list), []
    for piece in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[piece]
        slot = bisect_left(spaces, length)
        if slot == len(spaces):
            row, space = [], row_length
            rows.append(row)
        else:
            space = spaces[slot]
            row = open_rows[space].pop()
            if not open_rows[space]:
                del spaces[slot]
        row.append(piece)
        space -= length
        if space > 0:
            if not open_rows[space]:
                insort(spaces, space)
            open_rows[space].append(row)
    # Back to the order of the documents: otherwise each buffer would go to the model from long to short.
    return sorted(sorted(row) for row in rows)


def _build_row(
    segments: list[list[int]], positions: list[int], pad_token_id: int, num_repeated: int
) -> dict[str, list[int]]:
    input_ids, position_ids, labels = [], [], []
    for segment in segments:
        input_ids += segment
        position_ids += positions[: len(segment)]
        labels.append(IGNORED_LABEL)
        labels += segment[1:]
    labels[:num_repeated] = [IGNORED_LABEL] * num_repeated
    num_padding = len(positions) - len(input_ids)
    input_ids += [pad_token_id] * num_padding
    position_ids += positions[:num_padding]
    labels += [IGNORED_LABEL] * num_padding
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def pack_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    row_length: int,
    strategy: str = "split",
    text_column: str = "text",
    add_bos_token: bool = False,
    num_proc: int | None = None,
    batch_size: int = 1000,
    overlap: int = 0,
) -> Dataset | IterableDataset:
    """Tokenise the documents and pack each batch of them: a data set of rows `input_ids`, `position_ids`, `labels`.

    A `Dataset` is packed at once into the cache; the same documents, tokenizer and arguments find those rows again,
    in another process too. An `IterableDataset` is packed as it is read. Both give the same rows, and so does every
    `num_proc`. Each batch of `batch_size` documents is packed by itself (with `split`, at most one padded row a
    batch). A document is text only: `<|endoftext|>` written inside it is encoded as its characters.

    Args:
        row_length: tokens a row, at most `tokenizer.model_max_length`.
        add_bos_token: put the tokenizer's bos token before every document.
        num_proc: processes that tokenise (map-style only).
        batch_size: documents a batch.
        overlap: tokens of a cut document that the next row repeats, see `pack_documents`.

    Raises:
        ValueError: an argument outside its range, a tokenizer without eos or pad token, or a missing column.
    """
    _check_packing(row_length, strategy, overlap)
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1 document")
    if row_length > tokenizer.model_max_length:
        raise ValueError(
            f"row_length: {row_length} exceeds the tokenizer's model_max_length {tokenizer.model_max_length}; lower it"
        )
    for name in ("eos_token", "pad_token", *(("bos_token",) if add_bos_token else ())):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer: it has no {name}, which the packing needs; set tokenizer.{name}")
    streaming = isinstance(dataset, IterableDataset)
    if streaming and num_proc is not None:
        raise ValueError(f"num_proc: {num_proc} has no meaning for a streaming data set; leave it out")
    columns = _column_names(dataset)
    if text_column not in columns:
        raise ValueError(f"text_column: '{text_column}' is not among the columns {columns}; name one of them")

    packing = {
        "row_length": row_length,
        "strategy": strategy,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id if add_bos_token else None,
        "buffer_size": batch_size,
        "overlap": overlap,
    }
    shared = {"batched": True, "batch_size": batch_size}
    whole = {"input_columns": [text_column], "remove_columns": columns, "features": _ROW_FEATURES, **shared}
    tokenize_and_pack = {"tokenizer": tokenizer, "packing": packing}
    if streaming:
        return dataset.map(_tokenize_and_pack, fn_kwargs=tokenize_and_pack, **whole)

    # Our own fingerprints: the hash of a tokenizer object depends on the folder that it was loaded from.
    source = (_ROWS_VERSION, dataset._fingerprint, _tokenizer_fingerprint(tokenizer), text_column)
    rows_fingerprint = Hasher.hash((*source, sorted(packing.items(), key=lambda item: item[0])))
    if num_proc is None or num_proc == 1:
        return dataset.map(
            _tokenize_and_pack,
            fn_kwargs=tokenize_and_pack,
            new_fingerprint=rows_fingerprint,
            desc="Tokenizing and packing",
            **whole,
        )
    # Each process gets a shard, whose borders are not those of the batches: packing there would change the rows.
    tokens = dataset.map(
        _tokenize,
        input_columns=[text_column],
        remove_columns=columns,
        features=Features({"input_ids": _ROW_FEATURES["input_ids"]}),
        fn_kwargs={"tokenizer": tokenizer},
        num_proc=num_proc,
        new_fingerprint=Hasher.hash((*source, "tokens")),
        desc="Tokenizing",
        **shared,
    )
    return tokens.map(
        _pack,
        input_columns=["input_ids"],
        remove_columns=["input_ids"],
        features=_ROW_FEATURES,
        fn_kwargs={"packing": packing},
        new_fingerprint=rows_fingerprint,
        desc="Packing",
        **shared,
    )


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    encoding = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        # A document may be longer than the model's window: it is cut into rows.
        verbose=False,
    )
    return {"input_ids": encoding["input_ids"]}


def _pack(documents: list[list[int]], packing: dict) -> dict[str, list[list[int]]]:
    rows = list(pack_documents(documents, **packing))
    return {name: [row[name] for row in rows] for name in _ROW_FEATURES}


def _tokenize_and_pack(texts: list[str], tokenizer: PreTrainedTokenizerBase, packing: dict) -> dict[str, list]:
    return _pack(_tokenize(texts, tokenizer)["input_ids"], packing)


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the ids of a text; truncation and padding belong to the last call, not to the tokenizer."""
    if not tokenizer.is_fast:
        return Hasher.hash(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["truncation"], state["padding"]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode("utf-8")).hexdigest()


def _column_names(dataset: Dataset | IterableDataset) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    # A stream knows its columns only from its first example.
    return list(next(iter(dataset), {}))


def utf8_bytes(dataset: Dataset | IterableDataset, text_column: str = "text") -> int:
    """Number of UTF-8 bytes of all documents: the denominator of bits per byte, whatever the tokenizer.

    bits per byte = total_nll / (ln 2 * utf8_bytes), with `total_nll` the sum, in nats, of -log p over the labels other
    than -100 of the packed documents. That sum has the end token of each document, which stands for no byte, and lacks
    the first token of each segment. With `add_bos_token=True`, `best_fit` and no document longer than a row it has
    every byte of the text; otherwise compare only numbers from one packing.
    """
    columns = _column_names(dataset)
    if text_column not in columns:
        raise ValueError(f"text_column: '{text_column}' is not among the columns {columns}; name one of them")
    batches = dataset.select_columns([text_column]).iter(batch_size=1000)
    return sum(len(text.encode("utf-8")) for batch in batches for text in batch[text_column])
