"""Batches of an encoder-decoder: what the encoder reads beside what the decoder is to write, document by document."""

from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_predicted, check_vocabulary
from hf_ext.objectives.randomness import RandomCollator
from hf_ext.objectives.segments import (
    IGNORED_LABEL,
    Ragged,
    Segments,
    indices,
    join,
    one_each,
    pad_positions,
    pad_rows,
)


@dataclass(kw_only=True)
class DenoisingPairs(RandomCollator):
    """Fields of the collators that corrupt documents for an encoder and have a decoder restore them.

    Args:
        eos_token_id: end of a document.
        decoder_start_token_id: what the decoder reads first. Read for packed rows only: elsewhere the model shifts the
            labels by itself.
    """

    eos_token_id: int
    decoder_start_token_id: int

    def __post_init__(self):
        super().__post_init__()
        token_ids = {"eos_token_id": self.eos_token_id, "decoder_start_token_id": self.decoder_start_token_id}
        check_vocabulary(self.vocab_size, **token_ids)


def split_off_end(tokens: torch.Tensor, lengths: torch.Tensor, eos_token_id: int) -> tuple[Ragged, torch.Tensor]:
    """Documents without the end token that they end with, and (D,) bool whether they did."""
    last = lengths.cumsum(0) - 1
    ended = tokens[last] == eos_token_id
    kept = torch.ones_like(tokens, dtype=torch.bool)
    kept[last[ended]] = False
    return (tokens[kept], lengths - ended.long()), ended


def paired_batch(
    inputs: Ragged,
    targets: Ragged,
    rows: torch.Tensor,
    *,
    num_rows: int,
    is_packed: bool,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> dict[str, torch.Tensor]:
    """The batch of D documents, each with an input and a target of one token at least. All are LongTensors.

    B rows, T tokens of the longest on the encoder's side, S on the decoder's.

    Plain: `input_ids` and `attention_mask` (1 on tokens, 0 on padding), (B, T), and `labels` (B, S), padded with -100.

    Packed: `input_ids` and `position_ids` (B, T); `labels`, `decoder_input_ids` and `decoder_position_ids` (B, S).
    Positions count from 0 in every document on either side, and the n-th document of a row's one side belongs to the n-th
    of its other. Decoder inputs are each document's labels moved one to the right after `decoder_start_token_id`. If a
    row is short on any side, every row ends in one segment of padding on both: their numbers agree. There are no masks.

    Args:
        inputs, targets: tokens and lengths (D,).
        rows: (D,) int64, the row of each document, ascending.
    """
    check_predicted(targets[0], num_rows)
    encoder_lengths = torch.zeros(num_rows, dtype=torch.long).index_add_(0, rows, inputs[1])
    decoder_lengths = torch.zeros(num_rows, dtype=torch.long).index_add_(0, rows, targets[1])
    if not is_packed:
        return {
            "input_ids": pad_rows(inputs[0], encoder_lengths, pad_token_id),
            "attention_mask": pad_rows(torch.ones_like(inputs[0]), encoder_lengths, 0),
            "labels": pad_rows(targets[0], decoder_lengths, IGNORED_LABEL),
        }
    longest = [int(lengths.max()) for lengths in (encoder_lengths, decoder_lengths)]
    if (encoder_lengths < longest[0]).any() or (decoder_lengths < longest[1]).any():
        longest = [length + 1 for length in longest]
    everything_but_last = indices(targets[1]) < (targets[1] - 1).repeat_interleave(targets[1])
    start = one_each(decoder_start_token_id, torch.ones_like(rows, dtype=torch.bool))
    # the model can't embed -100
    written = targets[0].masked_fill(targets[0] == IGNORED_LABEL, pad_token_id)
    decoder_inputs, _ = join(start, (written[everything_but_last], targets[1] - 1))
    return {
        "input_ids": pad_rows(inputs[0], encoder_lengths, pad_token_id, longest[0]),
        "position_ids": pad_positions(indices(inputs[1]), encoder_lengths, longest[0]),
        "labels": pad_rows(targets[0], decoder_lengths, IGNORED_LABEL, longest[1]),
        "decoder_input_ids": pad_rows(decoder_inputs, decoder_lengths, pad_token_id, longest[1]),
        "decoder_position_ids": pad_positions(indices(targets[1]), decoder_lengths, longest[1]),
    }


def documents_to_corrupt(segments: Segments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`segments.documents()`; raises ValueError if a plain row is nothing but padding, which the encoder can't read."""
    segments.check_positions()
    tokens, lengths, rows = segments.documents()
    if not segments.is_packed and segments.is_padding.any():
        row = int(segments.rows[segments.is_padding][0])
        raise ValueError(f"input_ids: row {row} is nothing but pad_token_id {segments.pad_token_id}; drop it")
    if len(lengths) == 0:
        raise ValueError("input_ids: all rows are nothing but padding; drop them")
    return tokens, lengths, rows
