"""Texts as sequences of words or characters, and their n-grams."""

from collections.abc import Hashable, Iterable, Sequence


# White space is the only border of words that no language and no code disputes.
SPLITTERS = {"words": str.split, "characters": list}


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens, in order; none where there are fewer."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def longest_repeat(tokens: Sequence[str]) -> int:
    """How many tokens the longest sequence has that stands in `tokens` twice; the two may overlap.

    Sequences are numbered, equal ones alike: those of 2, 4, 8 … tokens by the numbers of their halves, until none comes
    twice. The length is then put together from the largest power downwards. n tokens cost n log n, however much they
    repeat.
    """
    numbers = [_numbered(tokens)]  # [k][i]: the sequence of 2**k tokens that begins at i
    while _has_repeat(numbers[-1]):
        half = 2 ** (len(numbers) - 1)
        numbers.append(_numbered(zip(numbers[-1], numbers[-1][half:], strict=False)))
    length, found = 0, [0] * (len(tokens) + 1)  # all sequences of no token are alike
    for k in reversed(range(len(numbers) - 1)):
        longer = _numbered(zip(found, numbers[k][length:], strict=False))
        if _has_repeat(longer):
            length, found = length + 2**k, longer
    return length


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _has_repeat(numbers: list[int]) -> bool:
    return len(set(numbers)) < len(numbers)
