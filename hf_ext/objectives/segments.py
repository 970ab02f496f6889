"""Rows of packed documents as one run of tokens with lengths, and back: what every objective reads and writes.

Legend: a segment is a document, a piece of one, or the padding of a row. N tokens of all rows laid end to end, D segments,
B rows, T tokens a row. A ragged list is a pair (values, lengths): values (N,), lengths (D,) int64 with sum N, the d-th of
D lists being the d-th stretch of so many values. All of it is linear in N and has no loop over segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


IGNORED_LABEL = -100

Ragged = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Segments:
    """What a collator was given, laid end to end.

    Args:
        tokens: (N,) int64.
        positions: (N,) int64, as given, or 0, 1, 2, … in a row without.
        labels: (N,) int64, as given; in a row without, the tokens.
        has_labels: (N,) bool, whether the token's row gave labels.
        lengths: (D,) int64, tokens of each segment.
        rows: (D,) int64, the row of each segment, ascending.
        row_lengths: (B,) int64.
        is_packed: whether any row gave position ids.
        pad_token_id: id that padding is made of.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    has_labels: torch.Tensor
    lengths: torch.Tensor
    rows: torch.Tensor
    row_lengths: torch.Tensor
    is_packed: bool
    pad_token_id: int

    def __post_init__(self):
        self.owners = owners(self.lengths)
        self.indices = indices(self.lengths)
        num_real = sums((self.tokens != self.pad_token_id).long(), self.lengths)
        self.is_padding = num_real == 0

    def next_token_labels(self) -> torch.Tensor:
        """(N,): labels as given; where none are, the tokens, but -100 for a segment's first and for padding."""
        unpredicted = (self.indices == 0) | self.is_padding[self.owners]
        return self.labels.masked_fill(unpredicted & ~self.has_labels, IGNORED_LABEL)

    def documents(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens (n,), lengths (d,) and rows (d,) of the segments that aren't padding."""
        real = ~self.is_padding
        return self.tokens[real[self.owners]], self.lengths[real], self.rows[real]

    def check_positions(self, name: str = "position_ids") -> None:
        """Raises ValueError where positions don't count 0, 1, 2, … in every segment: a document's border would be lost."""
        wrong = self.positions != self.indices
        if wrong.any():
            row, column = self.place(int(wrong.nonzero()[0]))
            raise ValueError(
                f"{name}: {int(self.positions[wrong][0])} in row {row} at position {column} doesn't go on from the "
                "token before; count 0, 1, 2, … in every document"
            )

    def place(self, index: int) -> tuple[int, int]:
        """Row and column of the token with this index."""
        ends = self.row_lengths.cumsum(0)
        row = int(torch.searchsorted(ends, index, right=True))
        return row, index - int(ends[row] - self.row_lengths[row])


def read_segments(
    rows: Sequence[Mapping],
    *,
    vocab_size: int,
    pad_token_id: int,
    token_column: str = "input_ids",
    position_column: str = "position_ids",
    read_labels: bool = True,
) -> Segments:
    """The segments of rows with `input_ids` and perhaps `position_ids` and `labels`: lists, arrays or tensors of one length.

    A decoder's side of pairs is read from other columns: the labels are the tokens then, and may be -100. Objectives that
    decide by themselves what is predicted don't read labels.

    Raises:
        ValueError: no rows, an empty row, columns of different lengths, an id or label outside the vocabulary, or an
            `attention_mask` with padding.
    """
    if len(rows) == 0:
        raise ValueError("rows: none given; a batch needs at least one row")
    names = (token_column, position_column, "labels")
    columns: tuple[list[torch.Tensor], ...] = ([], [], [])
    for index, row in enumerate(rows):
        if row.get(token_column) is None:
            raise ValueError(
                f"{token_column}: row {index} has only {sorted(row)}; tokenize and pack the documents first"
            )
        tokens = torch.as_tensor(row[token_column])
        if tokens.numel() == 0:
            raise ValueError(f"{token_column}: row {index} is empty; drop it before training")
        if row.get("attention_mask") is not None and not torch.as_tensor(row["attention_mask"]).all():
            raise ValueError(f"attention_mask: row {index} has padding; give rows without, they are padded here")
        for name, column, default in zip(names, columns, (tokens, None, tokens), strict=True):
            values = torch.arange(len(tokens)) if default is None else default
            if row.get(name) is not None and (name != "labels" or read_labels):
                values = torch.as_tensor(row[name])
            if values.shape != tokens.shape:
                raise ValueError(
                    f"{name}: row {index} has shape {tuple(values.shape)}, its {token_column} {tuple(tokens.shape)}; "
                    "give one value a token"
                )
            if values.is_floating_point():
                raise ValueError(f"{name}: row {index} holds {values.dtype}; give integers")
            column.append(values)
    row_lengths = torch.tensor([len(values) for values in columns[0]])
    tokens, positions, labels = (torch.cat(values).long() for values in columns)
    starts = positions == 0
    starts[offsets(row_lengths)] = True
    begins = starts.nonzero().flatten()
    segments = Segments(
        tokens,
        positions,
        labels,
        torch.tensor([read_labels and row.get("labels") is not None for row in rows]).repeat_interleave(row_lengths),
        begins.diff(append=begins.new_tensor([len(tokens)])),
        owners(row_lengths)[begins],
        row_lengths,
        any(row.get(position_column) is not None for row in rows),
        pad_token_id,
    )
    if token_column != "labels":
        _check_range(token_column, tokens, segments, vocab_size)
    _check_range("labels", labels, segments, vocab_size)
    return segments


def _check_range(name: str, values: torch.Tensor, segments: Segments, vocab_size: int) -> None:
    wrong = (values < 0) | (values >= vocab_size)
    or_ignored = ""
    if name == "labels":
        wrong &= values != IGNORED_LABEL
        or_ignored = f" (or {IGNORED_LABEL})"
    if wrong.any():
        index = int(wrong.nonzero()[0])
        row, column = segments.place(index)
        raise ValueError(
            f"{name}: {int(values[index])} in row {row} at position {column} is outside the vocabulary "
            f"0..{vocab_size - 1}{or_ignored}; use the tokenizer that the model was built for"
        )


def pad_rows(values: torch.Tensor, row_lengths: torch.Tensor, fill: int, length: int | None = None) -> torch.Tensor:
    """(N,) values of rows of `row_lengths` (B,) as (B, T), `fill` on the right; T is `length` or that of the longest."""
    columns = torch.arange(int(row_lengths.max()) if length is None else length)
    padded = values.new_full((len(row_lengths), len(columns)), fill)
    padded[columns < row_lengths[:, None]] = values
    return padded


def pad_positions(positions: torch.Tensor, row_lengths: torch.Tensor, length: int | None = None) -> torch.Tensor:
    """`pad_rows` for positions: the padding is a segment of its own and counts 0, 1, 2, …"""
    padded = pad_rows(positions, row_lengths, -1, length)
    columns = torch.arange(padded.shape[1]) - row_lengths[:, None]
    return torch.where(columns >= 0, columns, padded)


def packed_batch(segments: Segments, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """`input_ids`, `position_ids`, `labels`, each (B, T), of (N,) tokens and labels that lie as `segments` do."""
    return {
        "input_ids": pad_rows(tokens, segments.row_lengths, segments.pad_token_id),
        "position_ids": pad_positions(segments.positions, segments.row_lengths),
        "labels": pad_rows(labels, segments.row_lengths, IGNORED_LABEL),
    }


def offsets(lengths: torch.Tensor) -> torch.Tensor:
    """(D,): how many values come before each list."""
    return lengths.cumsum(0) - lengths


def owners(lengths: torch.Tensor) -> torch.Tensor:
    """(N,): of each value, which list it is in."""
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def indices(lengths: torch.Tensor) -> torch.Tensor:
    """(N,): of each value, its index in its list."""
    return torch.arange(int(lengths.sum())) - offsets(lengths).repeat_interleave(lengths)


def sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(D,): the sum of each list; 0 for an empty one."""
    return values.new_zeros(len(lengths)).index_add_(0, owners(lengths), values)


def join(*parts: Ragged) -> Ragged:
    """List by list, the d-th of every part after one another."""
    lengths = torch.stack([part_lengths for _, part_lengths in parts])
    total = lengths.sum(0)
    begins = offsets(total) + lengths.cumsum(0) - lengths
    joined = torch.empty(int(total.sum()), dtype=parts[0][0].dtype)
    for (values, part_lengths), begin in zip(parts, begins, strict=True):
        joined[begin.repeat_interleave(part_lengths) + indices(part_lengths)] = values
    return joined, total


def one_each(values: torch.Tensor | int, present: torch.Tensor) -> Ragged:
    """A value for each list where `present` (D,) bool, and none where not; `values` is (D,) or one for all."""
    values = torch.as_tensor(values).expand(len(present))
    return values[present], present.long()


def select(values: torch.Tensor, lengths: torch.Tensor, kept: torch.Tensor) -> Ragged:
    """The values where `kept`, (N,) bool."""
    return values[kept], sums(kept.long(), lengths)
