"""Sequence to sequence: pairs of a text and what is to be written of it, as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_vocabulary
from hf_ext.objectives.paired_batch import paired_batch
from hf_ext.objectives.segments import read_segments


@dataclass(kw_only=True)
class SequenceToSequenceCollator:
    """Stack pairs into a batch for the objective  L = -(1/N) * sum_t log p(y[t] | y[0..t-1], x).

    A row has `input_ids`, the source x, and `labels`, the target y, tokenized before; end tokens are the tokenizer's
    business. Labels may be -100 where nothing is to be predicted. The batch is that of `paired_batch`: `input_ids`,
    `attention_mask` (B, T) and `labels` (B, S), LongTensors; the model makes the decoder's inputs by shifting the labels.

    Packed rows have several pairs: `position_ids` and `decoder_position_ids`, both of them, count 0, 1, 2, … in every
    document, and the n-th document of `input_ids` belongs to the n-th of `labels`. The batch then has `input_ids`,
    `position_ids`, `labels`, `decoder_input_ids`, `decoder_position_ids`.

    Label smoothing belongs to the loss: `label_smoothing_factor` of the training arguments, which the Trainer hands to the
    model as `label_smoothing`. A batch holds none of it, so that held-out text is scored without.

    Args:
        vocab_size: number of ids that the model embeds.
        pad_token_id: id that fills up shorter rows, and stands in the decoder's inputs for a label of -100.
        decoder_start_token_id: what the decoder reads first. Read for packed rows only.

    Raises:
        ValueError: no rows, an empty side, columns of different lengths, an id or label outside the vocabulary, a padded
            `attention_mask`, sides with different numbers of documents, or a batch in which nothing is predicted.

    Source: Sutskever et al., 2014, arXiv 1409.3215, section 2.
    """

    vocab_size: int
    pad_token_id: int
    decoder_start_token_id: int

    def __post_init__(self):
        token_ids = {"pad_token_id": self.pad_token_id, "decoder_start_token_id": self.decoder_start_token_id}
        check_vocabulary(self.vocab_size, **token_ids)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        ids = {"vocab_size": self.vocab_size, "pad_token_id": self.pad_token_id}
        sources = read_segments(rows, **ids, read_labels=False)
        targets = read_segments(rows, **ids, token_column="labels", position_column="decoder_position_ids")
        sources.check_positions()
        targets.check_positions("decoder_position_ids")
        for index, row in enumerate(rows):
            if (row.get("position_ids") is None) != (row.get("decoder_position_ids") is None):
                raise ValueError(
                    f"position_ids, decoder_position_ids: row {index} has one of them alone; give both or neither"
                )
        counts = [torch.bincount(side.rows, minlength=len(rows)) for side in (sources, targets)]
        if (counts[0] != counts[1]).any():
            index = int((counts[0] != counts[1]).nonzero()[0])
            raise ValueError(
                f"decoder_position_ids: row {index} has {int(counts[1][index])} documents, its position_ids "
                f"{int(counts[0][index])}; give each source one target"
            )
        return paired_batch(
            (sources.tokens, sources.lengths),
            (targets.labels, targets.lengths),
            sources.rows,
            num_rows=len(rows),
            is_packed=sources.is_packed,
            pad_token_id=self.pad_token_id,
            decoder_start_token_id=self.decoder_start_token_id,
        )
