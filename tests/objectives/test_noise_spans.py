from collections import Counter

import pytest
import torch

from hf_ext.objectives.noise_spans import (
    draw_from,
    place_spans,
    random_compositions,
    round_at_random,
    shuffle,
    span_numbers,
    spend,
)


# Counts of n draws of probability p stay within five standard deviations sqrt(n p (1 - p)): about 1 in 2 million misses.
SIGMAS = 5


def _within(count: int, num_draws: int, probability: float) -> bool:
    return abs(count - num_draws * probability) < SIGMAS * (num_draws * probability * (1 - probability)) ** 0.5


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(10))
def test_compositions_are_positive_and_add_up(seed):
    totals = torch.tensor([1, 7, 0, 30, 5, 0, 12])
    parts = torch.tensor([1, 3, 0, 30, 1, 0, 6])
    lists = random_compositions(totals, parts, _generator(seed)).split(parts.tolist())
    assert [int(values.sum()) for values in lists] == totals.tolist()
    assert all((values >= 1).all() for values in lists)


def test_every_composition_is_equally_likely():
    n = 6000
    drawn = random_compositions(torch.full((n,), 5), torch.full((n,), 3), _generator(0)).view(n, 3)
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 6  # of 4 places choose 2
    assert all(_within(count, n, 1 / 6) for count in counts.values())


def test_every_arrangement_is_equally_likely():
    n = 6000
    spans, num_spans, totals = torch.tensor([2, 1] * n), torch.full((n,), 2), torch.full((n,), 6)
    for min_gap, num_arrangements in ((0, 10), (1, 6)):
        begins = place_spans(spans, num_spans, totals, min_gap=min_gap, generator=_generator(1))
        begins = begins.view(n, 2) - 6 * torch.arange(n)[:, None]
        assert (begins[:, 0] >= 0).all()
        assert (begins[:, 1] + 1 <= 6).all()
        assert (begins[:, 1] >= begins[:, 0] + 2 + min_gap).all()
        counts = Counter(map(tuple, begins.tolist()))
        assert len(counts) == num_arrangements
        assert all(_within(count, n, 1 / num_arrangements) for count in counts.values())


def test_spans_are_numbered_where_they_are():
    numbers = span_numbers(torch.tensor([1, 4, 4]), torch.tensor([2, 0, 1]), 6)
    assert numbers.tolist() == [-1, 0, 0, -1, 2, -1]


@pytest.mark.parametrize("seed", range(10))
def test_budgets_are_spent_exactly(seed):
    budgets = torch.tensor([0, 1, 17, 0, 40])
    lengths, num_spans = spend(budgets, lambda n: torch.arange(n) % 4 + 1, _generator(seed))
    assert [int(spans.sum()) for spans in lengths.split(num_spans.tolist())] == budgets.tolist()
    assert (lengths >= 1).all()


def test_draws_follow_their_weights():
    n, weights = 20000, torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    counts = torch.bincount(draw_from(weights, n, _generator(0)), minlength=3).tolist()
    assert counts[1] == 0
    assert _within(counts[0], n, 0.25)
    rounded = round_at_random(torch.full((n,), 2.3, dtype=torch.float64), _generator(0))
    assert set(rounded.tolist()) == {2, 3}
    assert _within(int((rounded == 3).sum()), n, 0.3)


def test_shuffling_stays_within_each_list():
    lengths = torch.tensor([3, 0, 2] * 2000)
    values = torch.tensor([0, 1, 2, 8, 9] * 2000)
    shuffled = shuffle(values, lengths, _generator(0)).view(2000, 5)
    assert (shuffled[:, :3].sort().values == torch.tensor([0, 1, 2])).all()
    assert (shuffled[:, 3:].sort().values == torch.tensor([8, 9])).all()
    assert _within(int((shuffled[:, 0] == 2).sum()), 2000, 1 / 3)
