"""Prefix language modeling: a document's beginning is read in both directions, its rest predicted token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_predicted
from hf_ext.objectives.randomness import RandomCollator
from hf_ext.objectives.segments import IGNORED_LABEL, Segments, packed_batch, pad_rows, read_segments


@dataclass(kw_only=True)
class PrefixLMCollator(RandomCollator):
    """Cut each document of n tokens after its first p and predict the rest:  L = -sum_{t>=p} log p(x[t] | x[0..t-1]).

    p is drawn uniformly from 1 .. n - 1, or given by the row as `prefix_length`: an integer for a row of one document,
    a list with one for each document (padding left out) of a packed row. A prefix may be empty (p = 0) where it is
    given: that document is causal, as is one of a single token, which can't be cut.

    Rows are as for `CausalCollator`, with positions that count 0, 1, 2, … in every document. The batch has `input_ids`,
    `position_ids`, `labels`, LongTensors (B, T), and `prefix_mask`, a BoolTensor (B, T), True on the tokens of a
    prefix: those of one document see one another in both directions, all others see what is before them. Labels are
    those of `CausalCollator` with -100 in the prefix; the model shifts by itself. There is no `attention_mask`.

    Raises:
        ValueError: as `CausalCollator` does; a `prefix_length` that doesn't fit its document, or not one a document.

    Source: Liu et al., 2018, arXiv 1801.10198; Raffel et al., 2019, arXiv 1910.10683, section 3.2.1.
    """

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id)
        segments.check_positions()
        draws = torch.rand(len(segments.lengths), dtype=torch.float64, generator=self.generator())
        # clamped below n for the draw that rounds up to 1
        cuts = (1 + draws * (segments.lengths - 1)).long().clamp(max=segments.lengths - 1)
        cuts[segments.is_padding] = 0
        _read_prefix_lengths(rows, segments, cuts)
        in_prefix = segments.indices < cuts[segments.owners]
        labels = segments.next_token_labels().masked_fill(in_prefix, IGNORED_LABEL)
        batch = packed_batch(segments, segments.tokens, labels)
        batch["prefix_mask"] = pad_rows(in_prefix, segments.row_lengths, False)
        check_predicted(batch["labels"][:, 1:], len(rows))
        return batch


def _read_prefix_lengths(rows: Sequence[Mapping], segments: Segments, cuts: torch.Tensor) -> None:
    """Write those that the rows give over the drawn `cuts`, (D,)."""
    for index, row in enumerate(rows):
        if row.get("prefix_length") is None:
            continue
        given = torch.as_tensor(row["prefix_length"]).flatten()
        documents = ((segments.rows == index) & ~segments.is_padding).nonzero().flatten()
        if len(given) != len(documents):
            raise ValueError(
                f"prefix_length: row {index} gives {len(given)} for {len(documents)} documents; give one a document"
            )
        wrong = (given < 0) | (given >= segments.lengths[documents])
        if wrong.any():
            raise ValueError(
                f"prefix_length: {int(given[wrong][0])} in row {index} for a document of "
                f"{int(segments.lengths[documents][wrong][0])} tokens; give at least 0 and fewer than it has"
            )
        cuts[documents] = given.long()
