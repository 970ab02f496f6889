"""Perplexity and bits per byte of token log-likelihoods."""

import math

import pytest

from hf_ext.metrics import compute


def test_perplexity_by_hand():
    scores = compute("perplexity", [[math.log(1 / 2)], [math.log(1 / 8), math.log(1 / 4)], []])
    assert scores["perplexity"] == pytest.approx(4)
    assert scores["loss"] == pytest.approx(2 * math.log(2))
    assert scores["num_tokens"] == 3


def test_an_even_choice_has_the_perplexity_of_its_number():
    for choices in (1, 2, 50_000):
        assert compute("perplexity", [[-math.log(choices)] * 7])["perplexity"] == pytest.approx(choices)


def test_too_high_is_infinite():
    assert compute("perplexity", [[-1000.0]])["perplexity"] == math.inf


def test_bits_by_hand():
    scores = compute("bits_per_byte", [[math.log(1 / 4)] * 3, [-2 * math.log(2)]], ["日本", "ab"])
    assert (scores["num_bytes"], scores["num_characters"]) == (8, 4)
    assert scores["bits_per_byte"] == pytest.approx(8 / 8)
    assert scores["bits_per_character"] == pytest.approx(8 / 4)


def test_bits_do_not_depend_on_how_a_text_is_cut():
    total = -13.7
    for parts in (1, 2, 5):
        scores = compute("bits_per_byte", [[total / parts] * parts], ["hello"])
        assert scores["bits_per_byte"] == pytest.approx(13.7 / math.log(2) / 5)
