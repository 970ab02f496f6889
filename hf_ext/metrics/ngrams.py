"""Texts as sequences of words or characters, and their n-grams."""

from collections.abc import Sequence


# White space is the only border of words that no language and no code disputes.
SPLITTERS = {"words": str.split, "characters": list}


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens, in order; none where there are fewer."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def longest_repeat(tokens: Sequence[str]) -> int:
    """How many tokens the longest sequence has that stands in `tokens` twice; the two may overlap.

    If one of n tokens does, so does one of n - 1: hence the bisection.
    """
    shortest_without, longest_with = len(tokens), 0
    while shortest_without - longest_with > 1:
        n = (shortest_without + longest_with) // 2
        found = ngrams(tokens, n)
        if len(set(found)) < len(found):
            longest_with = n
        else:
            shortest_without = n
    return longest_with
