"""Random spans of a text: how many, how long and where. What span corruption, SpanBERT and text infilling share.

Legend: D texts laid end to end, `totals` (D,) units each; S spans of all of them, `num_spans` (D,) each, laid end to end
too. A unit is a token or a word. Draws are by torch's `generator`, None being the global one. All in O(n log n).
"""

from collections.abc import Callable

import torch

from hf_ext.objectives.segments import indices, offsets, owners, sums


def random_compositions(totals: torch.Tensor, parts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Each of `totals` (D,) as a sum of `parts` (D,) positive integers, every such sum equally likely.

    1 <= parts <= totals, or both are 0. Returns (sum of parts,) int64. Among the places between neighbouring units,
    parts - 1 are borders.
    """
    keys = 2.0 * owners(totals) + torch.rand(int(totals.sum()), dtype=torch.float64, generator=generator)
    keys[offsets(totals)[totals > 0]] -= 1.0  # a text's first unit always begins a part
    order = keys.argsort()
    begins = order[indices(totals) < parts.repeat_interleave(totals)].sort().values
    return begins.diff(append=totals.sum()[None])


def place_spans(
    span_lengths: torch.Tensor,
    num_spans: torch.Tensor,
    totals: torch.Tensor,
    *,
    min_gap: int,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Where each span begins, (S,) int64, counted through all texts; every arrangement is equally likely.

    Spans of a text keep their order and are at least `min_gap` (0 or 1) units apart; before the first and after the
    last there may be none.
    """
    num_inner = (num_spans - 1).clamp(min=0)
    free = totals - sums(span_lengths, num_spans) - min_gap * num_inner
    assert (free >= 0).all(), "spans and the gaps between them are longer than the text"
    gaps = random_compositions(free + num_spans + 1, num_spans + 1, generator) - 1
    before = gaps[indices(num_spans + 1) < num_spans.repeat_interleave(num_spans + 1)]
    before = before + min_gap * (indices(num_spans) > 0)
    steps = before + span_lengths
    ends = steps.cumsum(0)
    used = sums(steps, num_spans)
    return ends - span_lengths + (offsets(totals) - offsets(used)).repeat_interleave(num_spans)


def span_numbers(begins: torch.Tensor, span_lengths: torch.Tensor, num_units: int) -> torch.Tensor:
    """(num_units,) int64: of each unit, which span it is in, or -1."""
    numbers = torch.full((num_units,), -1)
    owner = owners(span_lengths)
    numbers[begins[owner] + indices(span_lengths)] = owner
    return numbers


def spend(
    budgets: torch.Tensor, draw: Callable[[int], torch.Tensor], generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spans of drawn lengths for each text until its budget (D,), in units, is spent exactly; the last drawn is cut.

    `draw(n)` gives n lengths of at least 1. Returns lengths (S,) in random order within a text, and num_spans (D,).
    """
    owner = owners(budgets)
    drawn = draw(len(owner))
    spent = drawn.cumsum(0) - drawn
    # what the texts before have drawn
    spent = spent - (drawn.cumsum(0) - drawn)[offsets(budgets)[budgets > 0]].repeat_interleave(budgets[budgets > 0])
    kept = spent < budgets[owner]
    lengths = drawn.minimum(budgets[owner] - spent)[kept]
    num_spans = sums(kept.long(), budgets)
    return shuffle(lengths, num_spans, generator), num_spans


def shuffle(values: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The values of each list in random order."""
    keys = owners(lengths) + torch.rand(len(values), dtype=torch.float64, generator=generator)
    return values[keys.argsort()]


def round_at_random(expected: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """(D,) int64, the integer below or above, with the mean `expected` (D,)."""
    return (expected + torch.rand(len(expected), dtype=torch.float64, generator=generator)).floor().long()


def draw_from(weights: torch.Tensor, num_draws: int, generator: torch.Generator | None) -> torch.Tensor:
    """(num_draws,) int64: indices of `weights`, (n,) float64, drawn in proportion to them."""
    borders = weights.cumsum(0)
    draws = torch.rand(num_draws, dtype=torch.float64, generator=generator) * borders[-1]
    return torch.searchsorted(borders, draws, right=True).clamp(max=len(weights) - 1)
