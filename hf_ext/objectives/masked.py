"""Masked language modeling: tokens are hidden, and predicted from all that is left of their document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from hf_ext.objectives.argument_checks import check_probability, check_vocabulary
from hf_ext.objectives.noise_spans import draw_from, place_spans, round_at_random, span_numbers, spend
from hf_ext.objectives.randomness import RandomCollator
from hf_ext.objectives.segments import IGNORED_LABEL, Segments, packed_batch, pad_rows, read_segments
from hf_ext.objectives.word_borders import WordBorders


MASKED_UNITS = ("token", "word", "span")
# SpanBERT, section 3.1: lengths are geometric and at most 10
SPAN_GEOMETRIC = 0.2
MAX_SPAN_LENGTH = 10
# above it there may be too few units to stand between spans
MAX_SPAN_PROBABILITY = 0.5


@dataclass(kw_only=True)
class MaskedCollator(RandomCollator):
    """Choose tokens anew for every batch, hide most of them, and predict them:  L = -(1/N) * sum_chosen log p(x[t] | x').

    x' is what the model reads. Of the chosen tokens a `mask_share` is replaced by the mask token, a `random_share` by a
    token drawn uniformly from the ordinary ones, and the rest stays as it is. What is chosen:

    - `unit="token"`: each token by itself with `mask_probability`.
    - `unit="word"`: each word, with all its tokens. What becomes of a token is still drawn for each by itself.
    - `unit="span"`: spans of words, or of tokens without a `tokenizer`. Their lengths l are drawn with
      p(l) ~ 0.2 * 0.8^(l-1) up to 10 words, 3.8 in the mean, until exactly `mask_probability` of a document's words is
      chosen (rounded up or down at random, so that it is right in the mean; the last span is cut to fit). Spans don't
      touch, and every way to lay them is equally likely. All tokens of a span share one fate.

    Special tokens are never chosen and never drawn as replacement; no word or span reaches over one. In a batch where
    chance chooses nothing, one unit is chosen: its loss would be NaN.

    Rows are as for `CausalCollator`; their `labels` are not read: what is predicted is decided here. The batch has
    `input_ids` and `labels`, LongTensors (B, T), labels -100 but on chosen tokens; the model doesn't shift. If no row has
    `position_ids`, it has `attention_mask`, LongTensor (B, T), 1 on tokens and 0 on padding. Packed rows give
    `position_ids` and no mask; padding on the right is a segment of its own.

    Args:
        mask_token_id: what hidden tokens are replaced by.
        special_token_ids: ids that are no text (`tokenizer.all_special_ids`), ids that no token has included; the mask
            and the padding are special without being named.
        mask_probability: 0.15 as in BERT; ModernBERT takes 0.3. At most 0.5 for spans.
        mask_share, random_share: parts of the chosen tokens, together at most 1.
        unit: `token`, `word` or `span`.
        tokenizer: by whose vocabulary words are told apart (`WordBorders`); its special tokens are special here.

    Raises:
        ValueError: as `CausalCollator` does; a part outside its range; `unit="word"` without a tokenizer; a tokenizer
            whose vocabulary doesn't show where words begin; a batch of special tokens alone.

    Source: Devlin et al., 2018, arXiv 1810.04805, section 3.1 (tokens); Liu et al., 2019, arXiv 1907.11692, section 4.1
    (chosen anew every time); Joshi et al., 2019, arXiv 1907.10529, section 3.1 (spans); Warner et al., 2024, arXiv
    2412.13663 (0.3).
    """

    mask_token_id: int
    special_token_ids: Sequence[int]
    mask_probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    unit: str = "token"
    tokenizer: PreTrainedTokenizerBase | None = None
    _is_special: torch.Tensor = field(init=False, repr=False, compare=False)
    _ordinary: torch.Tensor = field(init=False, repr=False, compare=False)
    _words: WordBorders | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        check_vocabulary(self.vocab_size, mask_token_id=self.mask_token_id, special_token_ids=self.special_token_ids)
        if self.unit not in MASKED_UNITS:
            raise ValueError(f"unit: '{self.unit}' is not one of {', '.join(MASKED_UNITS)}")
        shares = {"mask_share": self.mask_share, "random_share": self.random_share}
        check_probability(mask_probability=self.mask_probability, **shares)
        if self.mask_probability == 0:
            raise ValueError("mask_probability: 0 hides nothing, there would be nothing to learn; raise it")
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share, random_share: {self.mask_share} + {self.random_share} must be at most 1")
        if self.unit == "span" and self.mask_probability > MAX_SPAN_PROBABILITY:
            raise ValueError(
                f"mask_probability: {self.mask_probability} is above {MAX_SPAN_PROBABILITY}, which leaves too little to "
                "stand between spans; lower it or choose unit token"
            )
        if self.unit == "word" and self.tokenizer is None:
            raise ValueError(
                "tokenizer: None, but unit word needs one to tell words apart; give it or choose unit token"
            )
        if self.unit == "token" and self.tokenizer is not None:
            raise ValueError("tokenizer: given, but unit token doesn't read it; leave it out or choose word or span")
        special = {self.pad_token_id, self.mask_token_id, *self.special_token_ids}
        if self.tokenizer is not None:
            self._words = WordBorders(self.tokenizer, self.vocab_size)
            special |= {index for index in self.tokenizer.all_special_ids if index < self.vocab_size}
        self._is_special = torch.zeros(self.vocab_size, dtype=torch.bool)
        self._is_special[sorted(special)] = True
        self._ordinary = (~self._is_special).nonzero().flatten()
        if len(self._ordinary) == 0:
            raise ValueError(
                f"special_token_ids: all of 0..{self.vocab_size - 1} are special, there is no text to hide"
            )

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id, read_labels=False)
        segments.check_positions()
        chosen, group = self._choose(segments)
        labels = segments.tokens.masked_fill(~chosen, IGNORED_LABEL)
        batch = packed_batch(segments, self._hide(segments.tokens, chosen, group), labels)
        if not segments.is_packed:
            del batch["position_ids"]
            batch["attention_mask"] = pad_rows(torch.ones_like(segments.tokens), segments.row_lengths, 0)
        return batch

    def _choose(self, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are chosen, (N,) bool, and the number of the group that each shares its fate with, (N,) int64."""
        generator = self.generator()
        is_text = ~self._is_special[segments.tokens]
        if not is_text.any():
            raise ValueError("input_ids: all tokens of the batch are special, nothing can be hidden; drop these rows")
        begins_stretch = is_text & ((segments.indices == 0) | ~is_text.roll(1))
        begins_unit = is_text if self._words is None else is_text & (begins_stretch | self._words(segments.tokens))
        unit = begins_unit.cumsum(0) - 1
        num_units = int(unit[-1]) + 1
        group = torch.arange(len(unit))
        if self.unit == "span":
            units_a_stretch = torch.bincount((begins_stretch.cumsum(0) - 1)[begins_unit])
            budgets = round_at_random(self.mask_probability * units_a_stretch.double(), generator)
            span_lengths, num_spans = spend(budgets, self._draw_span_lengths, generator)
            begins = place_spans(span_lengths, num_spans, units_a_stretch, min_gap=1, generator=generator)
            span = span_numbers(begins, span_lengths, num_units)
            chosen_units = span >= 0
            group = span[unit]
        else:
            draws = torch.rand(num_units, dtype=torch.float64, generator=generator)
            chosen_units = draws < self.mask_probability
        if not chosen_units.any():
            chosen_units[torch.randint(num_units, (1,), generator=generator)] = True
            group = torch.zeros_like(unit) if self.unit == "span" else group
        # before the first unit the number is -1, of no text
        return is_text & chosen_units[unit], group

    def _draw_span_lengths(self, num_spans: int) -> torch.Tensor:
        lengths = torch.arange(1, MAX_SPAN_LENGTH + 1)
        weights = (1 - SPAN_GEOMETRIC) ** lengths.double()
        return lengths[draw_from(weights, num_spans, self.generator())]

    def _hide(self, tokens: torch.Tensor, chosen: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        generator = self.generator()
        fate = torch.rand(len(tokens), dtype=torch.float64, generator=generator)[group]
        drawn = self._ordinary[torch.randint(len(self._ordinary), (len(tokens),), generator=generator)]
        is_masked = chosen & (fate < self.mask_share)
        is_random = chosen & ~is_masked & (fate < self.mask_share + self.random_share)
        return torch.where(is_random, drawn, tokens).masked_fill(is_masked, self.mask_token_id)
