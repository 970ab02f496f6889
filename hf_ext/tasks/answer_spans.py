"""The likeliest spans of a text, from a score for each token that the answer begins and a score that it ends there.

A text that is too long for the model is read in windows that overlap. The score of a span is the sum of both its scores,
s[i] + e[j] with i <= j < i + max_answer_length, in the best window that has it; Devlin et al. 2018, arXiv 1810.04805,
sec. 4.2 and, for questions without an answer, sec. 4.3.

Legend: W windows of a question, T tokens of the longest, L = max_answer_length.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """characters [start, end) of the text, score (logits, summed), share among the list's answers (0 to 1)."""

    start: int
    end: int
    score: float
    probability: float = 0.0


def token_characters(text: str, offsets: np.ndarray, is_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T,) int64 each: the characters that an answer from or up to each token begins and ends with; -1 where none may.

    Tokens that begin with a space, as those of byte-level vocabularies do, give it away: an answer has none around it.

    Args:
        offsets: (T, 2) characters [begin, end) of each token in `text`. is_text: (T,) bool, tokens of `text`.
    """
    places = np.arange(len(text) + 1)
    visible = np.fromiter((not character.isspace() for character in text), dtype=bool, count=len(text))
    # the next visible character from each place on, and the end of the last one before it
    following = np.minimum.accumulate(np.append(np.where(visible, places[:-1], len(text)), len(text))[::-1])[::-1]
    ended = np.maximum.accumulate(np.insert(np.where(visible, places[1:], 0), 0, 0))
    offsets = np.where(is_text[:, None], offsets, 0)
    begins, ends = following[offsets[:, 0]], ended[offsets[:, 1]]
    may = is_text & (begins < ends)
    return np.where(may, begins, -1), np.where(may, ends, -1)


def find_tokens(begins: np.ndarray, ends: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and last token of characters [start, end), or None where the window doesn't hold all of them.

    Args:
        begins, ends: (T,), as `token_characters` gives them.
    """
    may = np.flatnonzero(begins >= 0)
    if not len(may):
        return None
    first = may[np.searchsorted(ends[may], start, side="right") :][:1]
    last = may[: np.searchsorted(begins[may], end, side="left")][-1:]
    if not len(first) or not len(last) or begins[first[0]] > start or ends[last[0]] < end:
        return None
    return int(first[0]), int(last[0])


def best_spans(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    *,
    max_answer_length: int,
    n_best: int,
) -> list[Span]:
    """The `n_best` likeliest different spans of a text over all of its windows, the likeliest first; exact, no beam.

    Args:
        start_logits, end_logits: (W, T). begins, ends: (W, T), as `token_characters` gives them, -1 for padding.
        max_answer_length: tokens of a span at most.

    Returns:
        Spans without their `probability`, fewer than `n_best` where there are not so many; of those that have the same
        characters the likeliest.

    Raises:
        ValueError: logits that are not finite.
    """
    for name, logits in (("start_logits", start_logits), ("end_logits", end_logits)):
        if not np.isfinite(logits).all():
            raise ValueError(f"{name}: not finite, the training has diverged; lower training.learning_rate")
    L = min(max_answer_length, start_logits.shape[1])
    first = np.where(begins >= 0, start_logits, -np.inf).astype(np.float64)
    last = np.pad(
        np.where(ends >= 0, end_logits, -np.inf).astype(np.float64), ((0, 0), (0, L - 1)), constant_values=-np.inf
    )
    scores = first[:, :, None] + np.lib.stride_tricks.sliding_window_view(last, L, axis=1)  # (W, T, L)
    flat = scores.ravel()
    possible = int((flat > -np.inf).sum())
    count = min(4 * n_best, possible)  # a span may stand in several windows, and a character be several tokens
    while True:
        order = np.argpartition(-flat, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        order = order[np.lexsort((order, -flat[order]))]
        window, token, length = np.unravel_index(order, scores.shape)
        found = {}
        for place, span in enumerate(zip(begins[window, token], ends[window, token + length], strict=True)):
            found.setdefault(span, flat[order[place]])
        if len(found) >= n_best or count == possible:
            break
        count = min(4 * count, possible)
    return [Span(int(start), int(end), float(score)) for (start, end), score in list(found.items())[:n_best]]


def with_probabilities(spans: list[Span], null_score: float | None = None) -> tuple[list[Span], float]:
    """Spans with the softmax of their scores over the list, and the share of "no answer" in it.

    Args:
        null_score: that there is none; it is in the softmax too. None: there is one, the share is 0.
    """
    scores = np.array([span.score for span in spans] + ([] if null_score is None else [null_score]))
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    given = [Span(s.start, s.end, s.score, float(share)) for s, share in zip(spans, shares, strict=False)]
    return given, 0.0 if null_score is None else float(shares[-1])


def doubt(spans: list[Span], null_score: float) -> float:
    """Probability of no answer against the best one, 1 / (1 + exp(best - null)); 1 where there is no span at all."""
    if not spans:
        return 1.0
    return float(np.exp(-np.logaddexp(0.0, spans[0].score - null_score)))
