"""Causal language modeling: every token is predicted from those before it in its own document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


IGNORED_LABEL = -100


@dataclass
class CausalCollator:
    """Stack rows into a batch for the objective  L = -(1/N) * sum_{b,t} log p(x[b,t] | x[b,s..t-1]).

    The sum runs over the N positions whose label is not -100, and s is the start of the segment (document) that holds
    t. The model shifts by itself: the logits at t-1 are compared with `labels[b, t]`.

    A row is a mapping with `input_ids`, and may have `position_ids` and `labels`, each a list, array or tensor of one
    length. Missing position ids are 0, 1, 2, …: the row is one document. Missing labels are the input ids, except -100
    on the first token of each segment and on padding, that is on a segment of nothing but `pad_token_id`. Other columns
    are left out. Shorter rows are padded on the right, with `pad_token_id`, position ids from 0 and labels -100.

    The batch has `input_ids`, `position_ids`, `labels`, LongTensors (B, T), and no `attention_mask`: models find the
    borders between packed documents in the position ids only when there is none, and a mask of ones would let every
    document see those before it in its row. Padding needs no mask either: it comes last and is a segment of its own.

    Args:
        vocab_size: number of ids that the model embeds.
        pad_token_id: id that fills up shorter rows.

    Raises:
        ValueError: no rows, an empty row, columns of different lengths, an id or label outside the vocabulary, a
            padded `attention_mask`, or a batch in which nothing is predicted.
    """

    vocab_size: int
    pad_token_id: int

    def __post_init__(self):
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size: {self.vocab_size} must be at least 1")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id: {self.pad_token_id} is outside the vocabulary 0..{self.vocab_size - 1}")

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        if len(rows) == 0:
            raise ValueError("rows: none given; a batch needs at least one row")
        columns = [self._read_row(row, index) for index, row in enumerate(rows)]
        length = max(len(input_ids) for input_ids, _, _ in columns)
        batch = {
            "input_ids": torch.full((len(rows), length), self.pad_token_id, dtype=torch.long),
            "position_ids": torch.empty((len(rows), length), dtype=torch.long),
            "labels": torch.full((len(rows), length), IGNORED_LABEL, dtype=torch.long),
        }
        for index, (input_ids, position_ids, labels) in enumerate(columns):
            end = len(input_ids)
            batch["input_ids"][index, :end] = input_ids
            batch["position_ids"][index, :end] = position_ids
            batch["position_ids"][index, end:] = torch.arange(length - end)
            batch["labels"][index, :end] = labels
        self._check_range("input_ids", batch["input_ids"], is_valid=False)
        self._check_range("labels", batch["labels"], is_valid=batch["labels"] == IGNORED_LABEL)
        # The first column is never predicted: the shift drops it.
        if not (batch["labels"][:, 1:] != IGNORED_LABEL).any():
            raise ValueError(
                f"labels: all of the {len(rows)} rows' labels are {IGNORED_LABEL}, nothing is predicted and the loss "
                "would be NaN; drop these rows or give longer documents"
            )
        return batch

    def _read_row(self, row: Mapping, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if "input_ids" not in row:
            raise ValueError(f"input_ids: row {index} has only {sorted(row)}; tokenize and pack the documents first")
        input_ids = torch.as_tensor(row["input_ids"])
        if input_ids.numel() == 0:
            raise ValueError(f"input_ids: row {index} is empty; drop it before training")
        if "attention_mask" in row and not torch.as_tensor(row["attention_mask"]).all():
            raise ValueError(f"attention_mask: row {index} has padding; give rows without, they are padded here")
        if row.get("position_ids") is None:
            position_ids = torch.arange(len(input_ids))
        else:
            position_ids = torch.as_tensor(row["position_ids"])
        if row.get("labels") is None:
            labels = self._default_labels(input_ids, position_ids) if len(position_ids) == len(input_ids) else input_ids
        else:
            labels = torch.as_tensor(row["labels"])
        for name, values in (("position_ids", position_ids), ("labels", labels)):
            if values.shape != input_ids.shape:
                raise ValueError(
                    f"{name}: row {index} has shape {tuple(values.shape)}, its input_ids {tuple(input_ids.shape)}; "
                    "give one value a token"
                )
        return input_ids, position_ids, labels

    def _default_labels(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        starts = position_ids == 0
        starts[0] = True
        segment = starts.long().cumsum(0) - 1
        num_real = torch.zeros(int(segment[-1]) + 1, dtype=torch.long)
        num_real.index_add_(0, segment, (input_ids != self.pad_token_id).long())
        return input_ids.masked_fill(starts | (num_real[segment] == 0), IGNORED_LABEL)

    def _check_range(self, name: str, values: torch.Tensor, is_valid: torch.Tensor | bool) -> None:
        wrong = ((values < 0) | (values >= self.vocab_size)) & ~torch.as_tensor(is_valid)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            or_ignored = f" (or {IGNORED_LABEL})" if name == "labels" else ""
            raise ValueError(
                f"{name}: {values[row, column].item()} in row {row} at position {column} is outside the vocabulary "
                f"0..{self.vocab_size - 1}{or_ignored}; use the tokenizer that the model was built for"
            )
