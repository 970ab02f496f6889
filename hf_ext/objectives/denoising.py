"""Denoising, BART's objective: a document is damaged in one way or several, and the decoder writes the original."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import check_probability, check_vocabulary
from hf_ext.objectives.noise_spans import draw_from, place_spans, round_at_random, shuffle, span_numbers, spend
from hf_ext.objectives.paired_batch import DenoisingPairs, documents_to_corrupt, paired_batch, split_off_end
from hf_ext.objectives.segments import (
    Ragged,
    indices,
    join,
    offsets,
    one_each,
    owners,
    read_segments,
    select,
    sums,
)


@dataclass(kw_only=True)
class DenoisingCollator(DenoisingPairs):
    """Damage each document and let the decoder write it as it was:  L = -sum_t log p(x[t] | x[0..t-1], damaged x).

    What is switched on is done in this order, on what the step before has left:

    - sentence permutation: sentences, which end with one of `sentence_end_token_ids`, come in random order. What is left
      after the last such token is a sentence too;
    - document rotation: the document begins with a token drawn uniformly, and what was before it comes last;
    - token deletion: each token is left out with `delete_probability`, so that where it was must be found out. One token
      of a document always stays;
    - token masking: each token becomes the mask with `mask_probability`;
    - text infilling: spans become one mask each, how long they were must be found out. Lengths are Poisson distributed
      with mean `poisson_lambda`, a span of length 0 being a mask put in. They are drawn until `infill_probability` of the
      tokens are in spans (rounded up or down at random, right in the mean; the last span is cut to fit), and every way to
      lay them is equally likely.

    The end token, and a `bos_token_id` at the beginning, stay where they are. The defaults are the paper's choice for its
    large model, with `sentence_end_token_ids` given.

    Rows are as for `CausalCollator`, with positions that count 0, 1, 2, … in every document; their `labels` are not read.
    The batch is that of `paired_batch`, the labels being the documents as they came in; one that has no end token, a piece
    that packing cut, has none there either.

    Args:
        mask_token_id: stands for what is gone.
        bos_token_id: what documents begin with, or None.
        sentence_end_token_ids: full stops and the like; none: sentences stay in order.

    Raises:
        ValueError: as `CausalCollator` does; a number outside its range; ids outside the vocabulary; nothing switched on.

    Source: Lewis et al., 2019, arXiv 1910.13461, sections 2.2 (each) and 5 (the large model's).
    """

    mask_token_id: int
    bos_token_id: int | None = None
    sentence_end_token_ids: Sequence[int] = ()
    rotate_documents: bool = False
    delete_probability: float = 0.0
    mask_probability: float = 0.0
    infill_probability: float = 0.3
    poisson_lambda: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        ids = {"mask_token_id": self.mask_token_id, "sentence_end_token_ids": self.sentence_end_token_ids}
        check_vocabulary(self.vocab_size, **ids, bos_token_id=[] if self.bos_token_id is None else self.bos_token_id)
        probabilities = {
            "delete_probability": self.delete_probability,
            "mask_probability": self.mask_probability,
            "infill_probability": self.infill_probability,
        }
        check_probability(**probabilities)
        if not 0 < self.poisson_lambda < 100:
            raise ValueError(f"poisson_lambda: {self.poisson_lambda} must be above 0 and below 100 tokens")
        if not (any(probabilities.values()) or self.rotate_documents or len(self.sentence_end_token_ids)):
            raise ValueError(
                f"{', '.join(probabilities)}, rotate_documents, sentence_end_token_ids: all are off, the input would be "
                "the target; switch one on"
            )

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id, read_labels=False)
        tokens, lengths, owner_rows = documents_to_corrupt(segments)
        (text, text_lengths), ended = split_off_end(tokens, lengths, self.eos_token_id)
        begun = torch.zeros_like(ended)
        if self.bos_token_id is not None:
            has_text = text_lengths > 0
            begun[has_text] = text[offsets(text_lengths)[has_text]] == self.bos_token_id
        text, text_lengths = select(
            text, text_lengths, (indices(text_lengths) > 0) | ~begun.repeat_interleave(text_lengths)
        )
        damaged = self._damage((text, text_lengths))
        bos = 0 if self.bos_token_id is None else self.bos_token_id
        return paired_batch(
            join(one_each(bos, begun), damaged, one_each(self.eos_token_id, ended)),
            (tokens, lengths),
            owner_rows,
            num_rows=len(rows),
            is_packed=segments.is_packed,
            pad_token_id=self.pad_token_id,
            decoder_start_token_id=self.decoder_start_token_id,
        )

    def _damage(self, text: Ragged) -> Ragged:
        if len(self.sentence_end_token_ids):
            text = self._permute_sentences(*text)
        if self.rotate_documents:
            text = self._rotate(*text)
        if self.delete_probability:
            text = self._delete(*text)
        if self.mask_probability:
            text = self._mask(*text)
        if self.infill_probability:
            text = self._infill(*text)
        return text

    def _permute_sentences(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Ragged:
        is_end = torch.isin(tokens, torch.tensor(self.sentence_end_token_ids))
        begins = ((indices(lengths) == 0) | is_end.roll(1)).nonzero().flatten()
        sentence_lengths = begins.diff(append=begins.new_tensor([len(tokens)]))
        keys = owners(lengths)[begins] + torch.rand(len(begins), dtype=torch.float64, generator=self.generator())
        order = keys.argsort()
        moved = sentence_lengths[order]
        return tokens[begins[order].repeat_interleave(moved) + indices(moved)], lengths

    def _rotate(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Ragged:
        draws = torch.rand(len(lengths), dtype=torch.float64, generator=self.generator())
        shift = (draws * lengths).long()
        owner = owners(lengths)
        return tokens[offsets(lengths)[owner] + (indices(lengths) + shift[owner]) % lengths[owner]], lengths

    def _delete(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Ragged:
        draws = torch.rand(len(tokens), dtype=torch.float64, generator=self.generator())
        kept = draws >= self.delete_probability
        emptied = (sums(kept.long(), lengths) == 0) & (lengths > 0)
        kept[offsets(lengths)[emptied]] = True
        return select(tokens, lengths, kept)

    def _mask(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Ragged:
        draws = torch.rand(len(tokens), dtype=torch.float64, generator=self.generator())
        return tokens.masked_fill(draws < self.mask_probability, self.mask_token_id), lengths

    def _infill(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Ragged:
        generator = self.generator()
        budgets = round_at_random(self.infill_probability * lengths.double(), generator)
        span_lengths, num_spans = self._with_empty_spans(*spend(budgets, self._draw_spans, generator))
        begins = place_spans(span_lengths, num_spans, lengths, min_gap=0, generator=generator)
        kept = (span_numbers(begins, span_lengths, len(tokens)) < 0).nonzero().flatten()
        masks = torch.full_like(begins, self.mask_token_id)
        # a mask stands before the token at its place; documents stay apart, for the sort is stable
        order = torch.cat((2 * begins, 2 * kept + 1)).argsort(stable=True)
        owner = owners(lengths)
        return (
            torch.cat((masks, tokens[kept]))[order],
            num_spans + torch.zeros_like(lengths).index_add_(0, owner[kept], torch.ones_like(kept)),
        )

    def _draw_spans(self, num_spans: int) -> torch.Tensor:
        """Lengths from 1 up, Poisson distributed under the condition that they aren't 0."""
        longest = math.ceil(self.poisson_lambda + 12 * math.sqrt(self.poisson_lambda) + 12)
        lengths = torch.arange(1, longest + 1)
        weights = (lengths * math.log(self.poisson_lambda) - torch.lgamma(lengths.double() + 1)).exp()
        return lengths[draw_from(weights, num_spans, self.generator())]

    def _with_empty_spans(self, span_lengths: torch.Tensor, num_spans: torch.Tensor) -> Ragged:
        """Before each span those of length 0 that are drawn before it: m or more of them with probability exp(-m lambda)."""
        draws = torch.rand(len(span_lengths), dtype=torch.float64, generator=self.generator())
        num_empty = (-torch.log1p(-draws) / self.poisson_lambda).long()
        spans, with_empty = join(
            (torch.zeros(int(num_empty.sum()), dtype=torch.long), num_empty),
            one_each(span_lengths, torch.ones_like(span_lengths, dtype=torch.bool)),
        )
        num_spans = sums(with_empty, num_spans)
        return shuffle(spans, num_spans, self.generator()), num_spans
