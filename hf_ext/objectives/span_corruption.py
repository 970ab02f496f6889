"""Span corruption, T5's objective: spans are replaced by sentinels, and the decoder writes what stood there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_absent, check_different, check_vocabulary
from hf_ext.objectives.noise_spans import place_spans, random_compositions, span_numbers
from hf_ext.objectives.paired_batch import DenoisingPairs, documents_to_corrupt, paired_batch, split_off_end
from hf_ext.objectives.segments import Ragged, indices, join, one_each, read_segments, select, sums


@dataclass(kw_only=True)
class SpanCorruptionPairs(DenoisingPairs):
    """Fields of the objectives whose targets are spans between sentinels.

    Args:
        sentinel_token_ids: in order of use, `<extra_id_0>` first (in T5's vocabulary they descend). No document may hold
            one. A document needs one more of them than it has spans, or as many without `final_sentinel`.
        final_sentinel: whether the targets close with one more sentinel, as in the paper; its released code leaves it
            out.
    """

    sentinel_token_ids: Sequence[int]
    final_sentinel: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_vocabulary(self.vocab_size, sentinel_token_ids=self.sentinel_token_ids)
        names = "sentinel_token_ids, eos_token_id"
        check_different(names, [*self.sentinel_token_ids, self.eos_token_id])
        if self.pad_token_id in self.sentinel_token_ids:
            raise ValueError(f"pad_token_id: {self.pad_token_id} is a sentinel too; give padding an id of its own")

    def corrupt(
        self, body: Ragged, num_noise: torch.Tensor, num_spans: torch.Tensor, at_end=None
    ) -> tuple[Ragged, Ragged]:
        """Inputs and targets of D documents without their end tokens: spans drawn, sentinels set in both.

        Args:
            num_noise, num_spans: (D,) int64, as `count_noise` gives them.
            at_end: (D,) bool or None, documents whose one span is put at their end.
        """
        tokens, lengths = body
        self._check_number(lengths, num_spans)
        generator = self.generator()
        span_lengths = random_compositions(num_noise, num_spans, generator)
        begins = place_spans(span_lengths, num_spans, lengths, min_gap=1, generator=generator)
        if at_end is not None:
            ends = lengths.cumsum(0).repeat_interleave(num_spans)
            begins = torch.where(at_end.repeat_interleave(num_spans), ends - span_lengths, begins)
        is_noise = span_numbers(begins, span_lengths, len(tokens)) >= 0
        sentinels = torch.tensor(self.sentinel_token_ids)
        number = indices(num_spans)

        kept = ~is_noise
        kept[begins] = True
        inputs = select(tokens.scatter(0, begins, sentinels[number]), lengths, kept)

        every_span = torch.ones_like(begins, dtype=torch.bool)
        spans, with_sentinels = join(one_each(sentinels[number], every_span), (tokens[is_noise], span_lengths))
        targets = (spans, sums(with_sentinels, num_spans))
        if self.final_sentinel:
            targets = join(targets, one_each(sentinels[num_spans], torch.ones_like(lengths, dtype=torch.bool)))
        return inputs, targets

    def _check_number(self, lengths: torch.Tensor, num_spans: torch.Tensor) -> None:
        needed = num_spans + self.final_sentinel
        if int(needed.max()) > len(self.sentinel_token_ids):
            document = int(needed.argmax())
            raise ValueError(
                f"sentinel_token_ids: {len(self.sentinel_token_ids)} given, but a document of {int(lengths[document])} "
                f"tokens needs {int(needed[document])}; give more of them, longer spans or shorter documents"
            )


def count_noise(
    lengths: torch.Tensor, noise_density: torch.Tensor | float, mean_span_length: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tokens of documents of `lengths` (D,) are noise, and in how many spans; int64, (D,) each.

        num_noise = round(length * noise_density), at least 1 and at most length - 1
        num_spans = round(num_noise / mean_span_length), at least 1 and at most num_noise and length - num_noise

    Halves are rounded to the even neighbour. Both are 0 for a document of fewer than two tokens.
    """
    num_noise = (lengths.double() * noise_density).round().long().clamp(min=1).minimum(lengths - 1).clamp(min=0)
    num_spans = (num_noise.double() / mean_span_length).round().long().clamp(min=1)
    return num_noise, num_spans.minimum(num_noise).minimum(lengths - num_noise)


def check_noise(noise_density: float, mean_span_length: float) -> None:
    if not 0 < noise_density < 1:
        raise ValueError(f"noise_density: {noise_density} must be above 0 and below 1")
    if not mean_span_length >= 1:
        raise ValueError(f"mean_span_length: {mean_span_length} must be at least 1 token")


@dataclass(kw_only=True)
class SpanCorruptionCollator(SpanCorruptionPairs):
    """Replace spans of each document by one sentinel each; the targets are the sentinels, each followed by its span.

        text      Thank you for inviting me to your party last week <eos>
        input_ids Thank you <0> me to your party <1> week <eos>
        labels    <0> for inviting <1> last <2> <eos>

    How many tokens are noise and in how many spans is fixed by a document's length (`count_noise`, over its tokens without
    the end token); which lengths the spans have and where they are is drawn, every arrangement in which spans don't touch
    equally likely. (T5's code always lets the text begin with a token that stays and end with one that doesn't.) The end
    token is never noise: inputs have one where the document has, as a piece that packing cut hasn't; targets always end
    with one. A document that is too short to be corrupted is its own input, and its target has no span.

    Rows are as for `CausalCollator`, with positions that count 0, 1, 2, … in every document; their `labels` are not read.
    The batch is that of `paired_batch`: `input_ids`, `attention_mask`, `labels`; or, if a row has `position_ids`,
    `input_ids`, `position_ids`, `labels`, `decoder_input_ids`, `decoder_position_ids`, every document corrupted by itself.

    Args:
        noise_density: share of the tokens that are replaced.
        mean_span_length: tokens of a span, in the mean.

    Raises:
        ValueError: as `CausalCollator` does; a number outside its range; ids outside the vocabulary or twice the same; a
            sentinel in a document; more spans than sentinels.

    Source: Raffel et al., 2019, arXiv 1910.10683, sections 3.1.4 and 3.3.4.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        check_noise(self.noise_density, self.mean_span_length)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id, read_labels=False)
        check_absent("sentinel_token_ids", self.sentinel_token_ids, segments)
        tokens, lengths, owner_rows = documents_to_corrupt(segments)
        body, ended = split_off_end(tokens, lengths, self.eos_token_id)
        inputs, targets = self.corrupt(body, *count_noise(body[1], self.noise_density, self.mean_span_length))
        return paired_batch(
            join(inputs, one_each(self.eos_token_id, ended)),
            join(targets, one_each(self.eos_token_id, torch.ones_like(ended))),
            owner_rows,
            num_rows=len(rows),
            is_packed=segments.is_packed,
            pad_token_id=self.pad_token_id,
            decoder_start_token_id=self.decoder_start_token_id,
        )
