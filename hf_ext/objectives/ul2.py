"""Mixture of denoisers, UL2's objective: short spans, long spans and prefixes, each document by one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_absent, check_different, check_vocabulary
from hf_ext.objectives.noise_spans import draw_from
from hf_ext.objectives.paired_batch import documents_to_corrupt, paired_batch, split_off_end
from hf_ext.objectives.segments import (
    IGNORED_LABEL,
    Ragged,
    indices,
    join,
    one_each,
    pad_positions,
    pad_rows,
    read_segments,
)
from hf_ext.objectives.span_corruption import SpanCorruptionPairs, check_noise, count_noise


ARCHITECTURES = ("encoder_decoder", "decoder")


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a document.

    Args:
        mode: name that `mode_token_ids` gives a token to: R, S or X.
        mean_span_length: tokens of a span, in the mean; None for one span at the document's end, the sequential denoiser.
        noise_density: share of the tokens that are replaced.
        weight: how often it is drawn, against the sum of all.
    """

    mode: str
    mean_span_length: float | None
    noise_density: float
    weight: float = 1.0

    def __post_init__(self):
        check_noise(self.noise_density, 1.0 if self.mean_span_length is None else self.mean_span_length)
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight: {self.weight} must be at least 0 and finite")


# Tay et al. 2022, section 3.1.2, Table 1
UL2_DENOISERS = (
    Denoiser("R", 3, 0.15),
    Denoiser("R", 8, 0.15),
    Denoiser("S", None, 0.25),
    Denoiser("X", 3, 0.5),
    Denoiser("X", 8, 0.5),
    Denoiser("X", 64, 0.15),
    Denoiser("X", 64, 0.5),
)


@dataclass(kw_only=True)
class MixtureOfDenoisersCollator(SpanCorruptionPairs):
    """Draw one of the denoisers for each document and corrupt it by that.

    All are span corruption as `SpanCorruptionCollator` does it, with numbers of their own: R, the regular one, hides
    few short spans; X, the extreme one, long spans or half of the text; S, the sequential one, the last quarter, as one
    span behind one sentinel. If `mode_token_ids` are given, the input begins with the token of the denoiser's mode.

        text                   a b c d e f g h <eos>
        S, encoder's inputs    [S] a b c d e f <0> <eos>
           targets             <0> g h <1> <eos>
        S, decoder's row       [S] a b c d e f <0>  <0> g h <1> <eos>
           labels               x  x x x x x x  x   <0> g h <1> <eos>        x = -100

    `architecture="encoder_decoder"`: the batch is that of `paired_batch`.

    `architecture="decoder"`: a document is its inputs, without an end token, and its targets after one another. The batch
    has `input_ids`, `position_ids`, `labels`, LongTensors (B, T), -100 on inputs and padding; and `prefix_mask`,
    BoolTensor (B, T), True on the inputs, which see one another in both directions. The model shifts by itself. Padding is
    one segment at a row's end; there is no `attention_mask`. A document of n tokens grows by two tokens a span and up to
    three more: rows come out longer than they went in.

    Rows are as for `CausalCollator`, with positions that count 0, 1, 2, … in every document; their `labels` are not read.

    Args:
        denoisers: those of the paper with equal weights, if none are given.
        mode_token_ids: a token for each mode that occurs, or None. No document may hold one.
        architecture: `encoder_decoder` or `decoder`.

    Raises:
        ValueError: as `SpanCorruptionCollator` does; no denoiser with a weight; a mode without a token or a token without
            a mode.

    Source: Tay et al., 2022, arXiv 2205.05131, section 3.1.2 and Table 1 (denoisers), 3.1.3 (mode tokens).
    """

    denoisers: Sequence[Denoiser] = UL2_DENOISERS
    mode_token_ids: Mapping[str, int] | None = None
    architecture: str = "encoder_decoder"

    def __post_init__(self):
        super().__post_init__()
        if not any(denoiser.weight > 0 for denoiser in self.denoisers):
            raise ValueError("denoisers: none has a weight above 0; give at least one")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture: '{self.architecture}' is not one of {', '.join(ARCHITECTURES)}")
        if self.mode_token_ids is not None:
            modes = sorted({denoiser.mode for denoiser in self.denoisers})
            if sorted(self.mode_token_ids) != modes:
                raise ValueError(
                    f"mode_token_ids: {sorted(self.mode_token_ids)} are given for the modes {modes}; give one a mode"
                )
            ids = list(self.mode_token_ids.values())
            check_vocabulary(self.vocab_size, mode_token_ids=ids)
            reserved = [*ids, *self.sentinel_token_ids, self.eos_token_id]
            check_different("mode_token_ids, sentinel_token_ids, eos_token_id", reserved)
            if self.pad_token_id in ids:
                raise ValueError(
                    f"pad_token_id: {self.pad_token_id} is a mode token too; give padding an id of its own"
                )

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id, read_labels=False)
        reserved = [*self.sentinel_token_ids, *(self.mode_token_ids or {}).values()]
        check_absent("sentinel_token_ids, mode_token_ids", reserved, segments)
        tokens, lengths, owner_rows = documents_to_corrupt(segments)
        body, ended = split_off_end(tokens, lengths, self.eos_token_id)

        weights = torch.tensor([denoiser.weight for denoiser in self.denoisers], dtype=torch.float64)
        drawn = draw_from(weights, len(lengths), self.generator())
        inputs, targets = self._corrupt_by(body, drawn)
        every = torch.ones_like(ended)
        if self.mode_token_ids is not None:
            modes = torch.tensor([self.mode_token_ids[denoiser.mode] for denoiser in self.denoisers])
            inputs = join(one_each(modes[drawn], every), inputs)
        targets = join(targets, one_each(self.eos_token_id, every))
        if self.architecture == "decoder":
            return self._decoder_batch(inputs, targets, owner_rows, len(rows))
        return paired_batch(
            join(inputs, one_each(self.eos_token_id, ended)),
            targets,
            owner_rows,
            num_rows=len(rows),
            is_packed=segments.is_packed,
            pad_token_id=self.pad_token_id,
            decoder_start_token_id=self.decoder_start_token_id,
        )

    def _corrupt_by(self, body: Ragged, drawn: torch.Tensor) -> tuple[Ragged, Ragged]:
        """`drawn`: (D,) int64, the denoiser of each document."""
        # of a sequential one this is no more than all of its noise, which makes it one span
        spans = [d.mean_span_length or float("inf") for d in self.denoisers]
        density = torch.tensor([d.noise_density for d in self.denoisers], dtype=torch.float64)
        mean_span = torch.tensor(spans, dtype=torch.float64)
        sequential = torch.tensor([d.mean_span_length is None for d in self.denoisers])
        num_noise, num_spans = count_noise(body[1], density[drawn], mean_span[drawn])
        return self.corrupt(body, num_noise, num_spans, at_end=sequential[drawn])

    def _decoder_batch(
        self, inputs: Ragged, targets: Ragged, rows: torch.Tensor, num_rows: int
    ) -> dict[str, torch.Tensor]:
        tokens, lengths = join(inputs, targets)
        labels, _ = join((torch.full_like(inputs[0], IGNORED_LABEL), inputs[1]), targets)
        # a document without text or mode begins with its targets: their first is nobody's to predict
        labels = labels.masked_fill(indices(lengths) == 0, IGNORED_LABEL)
        in_prefix, _ = join(
            (torch.ones_like(inputs[0], dtype=torch.bool), inputs[1]),
            (torch.zeros_like(targets[0], dtype=torch.bool), targets[1]),
        )
        row_lengths = torch.zeros(num_rows, dtype=torch.long).index_add_(0, rows, lengths)
        return {
            "input_ids": pad_rows(tokens, row_lengths, self.pad_token_id),
            "position_ids": pad_positions(indices(lengths), row_lengths),
            "labels": pad_rows(labels, row_lengths, IGNORED_LABEL),
            "prefix_mask": pad_rows(in_prefix, row_lengths, False),
        }
