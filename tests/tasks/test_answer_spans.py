"""The likeliest spans against a search through all of them."""

import math

import numpy as np
import pytest

from hf_ext.tasks.answer_spans import Span, best_spans, doubt, find_tokens, token_characters, with_probabilities


TEXT = "  The cat, 5½ years\n\n old, sat in Köln. "
# softmax and sums of a few numbers in fp64
TOLERANCE = 1e-12


def random_offsets(generator, text: str) -> np.ndarray:
    """Tokens that cover a text: pieces of one to four characters, some of no or of the same character as the one before."""
    offsets, place = [], 0
    while place < len(text):
        end = min(place + int(generator.integers(1, 5)), len(text))
        offsets += [(place, end)] * (2 if end - place == 1 and generator.random() < 0.3 else 1)
        place = end
    return np.array(offsets)


def every_span(start_logits, end_logits, begins, ends, max_answer_length):
    """All different spans with the score of their best window: {(start, end): score}."""
    found = {}
    for window in range(len(start_logits)):
        for first in range(start_logits.shape[1]):
            for last in range(first, min(first + max_answer_length, start_logits.shape[1])):
                if begins[window][first] < 0 or ends[window][last] < 0:
                    continue
                span = (int(begins[window][first]), int(ends[window][last]))
                score = float(start_logits[window][first]) + float(end_logits[window][last])
                found[span] = max(score, found.get(span, -math.inf))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("max_answer_length", "n_best"), [(1, 5), (4, 3), (100, 40)])
def test_the_best_of_all_spans_over_all_windows(seed, max_answer_length, n_best):
    generator = np.random.default_rng(seed)
    offsets = random_offsets(generator, TEXT)
    begins, ends = token_characters(TEXT, offsets, np.ones(len(offsets), dtype=bool))
    width, step = 8, 5  # windows that share three tokens
    parts = [slice(i, i + width) for i in range(0, len(begins), step)]
    rows = [np.full((len(parts), width), -1) for _ in range(2)]
    for row, part in enumerate(parts):
        for table, values in zip(rows, (begins, ends), strict=True):
            table[row, : len(values[part])] = values[part]
    logits = generator.normal(size=(2, len(parts), width)).astype(np.float32)
    found = best_spans(*logits, *rows, max_answer_length=max_answer_length, n_best=n_best)
    expected = sorted(every_span(*logits, *rows, max_answer_length).items(), key=lambda item: -item[1])[:n_best]
    assert [(span.start, span.end) for span in found] == [span for span, _ in expected]
    assert [span.score for span in found] == pytest.approx([score for _, score in expected], abs=TOLERANCE)
    for span in found:
        text = TEXT[span.start : span.end]
        assert text == text.strip() != ""


def test_a_span_of_many_windows_and_tokens_stands_once():
    begins, ends = np.zeros((3, 4), dtype=int), np.ones((3, 4), dtype=int)  # twelve tokens of one character
    logits = np.arange(12.0).reshape(3, 4)
    assert best_spans(logits, logits, begins, ends, max_answer_length=4, n_best=5) == [Span(0, 1, 22.0)]


def test_tokens_to_characters_and_back():
    #           0123456789
    text = "a bc  d ½!"
    offsets = np.array([(0, 0), (0, 1), (1, 4), (4, 5), (5, 7), (7, 9), (8, 9), (9, 10), (0, 0)])
    of_text = np.array([False] + [True] * 7 + [False])
    begins, ends = token_characters(text, offsets, of_text)
    assert begins.tolist() == [-1, 0, 2, -1, 6, 8, 8, 9, -1]
    assert ends.tolist() == [-1, 1, 4, -1, 7, 9, 9, 10, -1]
    assert find_tokens(begins, ends, 0, 1) == (1, 1)
    assert find_tokens(begins, ends, 2, 7) == (2, 4)
    assert find_tokens(begins, ends, 3, 7) == (2, 4)  # a token's second character: the whole token
    assert find_tokens(begins, ends, 8, 9) == (5, 6)  # both tokens of the character
    later, ended = begins[4:], ends[4:]  # a window that begins with "d"
    assert find_tokens(later, ended, 2, 7) is None
    assert find_tokens(later, ended, 6, 10) == (0, 3)
    assert find_tokens(begins[:4], ends[:4], 2, 7) is None
    assert find_tokens(np.array([-1]), np.array([-1]), 0, 1) is None


def test_shares_are_a_softmax_with_or_without_no_answer():
    spans = [Span(0, 1, 2.0), Span(2, 3, 1.0)]
    with_null, null = with_probabilities(spans, 1.5)
    total = math.exp(2) + math.exp(1) + math.exp(1.5)
    assert [s.probability for s in with_null] == pytest.approx(
        [math.exp(2) / total, math.exp(1) / total], abs=TOLERANCE
    )
    assert null == pytest.approx(math.exp(1.5) / total, abs=TOLERANCE)
    assert doubt(spans, 1.5) == pytest.approx(math.exp(1.5) / (math.exp(1.5) + math.exp(2)), abs=TOLERANCE)
    without, null = with_probabilities(spans)
    assert null == 0.0
    assert sum(s.probability for s in without) == pytest.approx(1.0, abs=TOLERANCE)
    assert doubt([], -3.0) == 1.0
    assert doubt(spans, 1e4) == 1.0


def test_numbers_that_are_none_are_refused():
    logits, characters = np.array([[0.0, np.nan]]), np.array([[0, 1]])
    with pytest.raises(ValueError, match="start_logits: not finite"):
        best_spans(logits, logits * 0, characters, characters + 1, max_answer_length=2, n_best=1)
