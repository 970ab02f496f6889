"""Causal language modeling: every token is predicted from those before it in its own document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_predicted, check_vocabulary
from hf_ext.objectives.segments import packed_batch, read_segments


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
        check_vocabulary(self.vocab_size, pad_token_id=self.pad_token_id)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id)
        batch = packed_batch(segments, segments.tokens, segments.next_token_labels())
        # The first column is never predicted: the shift drops it.
        check_predicted(batch["labels"][:, 1:], len(rows))
        return batch
