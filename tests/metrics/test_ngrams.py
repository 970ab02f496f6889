"""Distinct n-grams and repetition: by hand, and against a search of all sequences."""

import random

import pytest

from hf_ext.metrics import compute
from hf_ext.metrics.ngrams import longest_repeat


def test_distinct_by_hand():
    scores = compute("distinct_n", ["a b a b", "a b"])
    assert scores == {"distinct_1": 2 / 6, "distinct_2": 2 / 4, "distinct_3": 2 / 2}
    assert compute("distinct_n", ["aab"], orders=[1, 2], split="characters") == {"distinct_1": 2 / 3, "distinct_2": 1.0}
    assert compute("distinct_n", [""]) == {"distinct_1": 0.0, "distinct_2": 0.0, "distinct_3": 0.0}


def test_pairs_do_not_reach_from_one_text_into_the_next():
    assert compute("distinct_n", ["a b", "b a"], orders=[2]) == {"distinct_2": 1.0}
    assert compute("distinct_n", ["a b b a"], orders=[2]) == {"distinct_2": 1.0}
    assert compute("distinct_n", ["a b", "a b"], orders=[2]) == {"distinct_2": 0.5}


def test_repetition_by_hand():
    scores = compute("repetition", ["x y x y x y", "a b c", "a"], n=2)
    assert scores["repetition_2"] == pytest.approx((1 - 2 / 5 + 0) / 2)  # the last has no pair
    assert scores["longest_repeat"] == 4  # x y x y, twice with an overlap
    assert compute("repetition", ["a a a a a a"], n=4)["repetition_4"] == pytest.approx(1 - 1 / 3)
    assert compute("repetition", ["a b c d"]) == {"repetition_4": 0.0, "longest_repeat": 0}


def test_the_longest_repeat_is_the_longest_of_all():
    rng = random.Random(0)
    for _ in range(200):
        tokens = rng.choices(
            "a" if rng.random() < 0.2 else "ab" if rng.random() < 0.5 else "abcdefgh", k=rng.randint(0, 14)
        )
        every = [
            length
            for length in range(1, len(tokens))
            for first in range(len(tokens) - length + 1)
            for second in range(first + 1, len(tokens) - length + 1)
            if tokens[first : first + length] == tokens[second : second + length]
        ]
        assert longest_repeat(tokens) == max(every, default=0)


def test_a_long_loop_is_measured_at_once():
    assert longest_repeat(["a", "b", "c"] * 20_000) == 60_000 - 3
