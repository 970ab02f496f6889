"""The number that a worked solution ends in, and the answer that most of several solutions agree on."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal


MARK = "####"  # GSM8K writes it before the answer
# A sign belongs to the number where nothing stands before it that could be subtracted from: "= -3", but not "10-3".
_NUMBER = re.compile(
    r"(?:(?<![\w.,)])[-−–])?(?:[$€£¥]\s?[-−–]?)?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
)
_ALONE = re.compile(rf"\s*(?:{_NUMBER.pattern})\s*\.?\s*")


def extract_answer(text: str, *, fallback: bool = False) -> str | None:
    """The answer in `text`, as a plain number such as "1234.5"; None if there is none.

    It is the first number on the line after the first `####`, or the whole text if that is a number alone. Commas
    between thousands, currency signs, units, zeros behind the point and a final full stop do not count: "####
    $1,234.50 a day." is "1234.5". Exponents and fractions are not read.

    Args:
        fallback: without a `####` that a number follows, the last number of the text is taken.
    """
    _, mark, after = text.partition(MARK)
    found = _NUMBER.search(after.split("\n", 1)[0]) if mark else _ALONE.fullmatch(text)
    if found is None and fallback:
        found = next(reversed(list(_NUMBER.finditer(text))), None)
    return None if found is None else _plain_number(found.group())


def majority_answer(texts: Sequence[str], *, fallback: bool = False) -> str | None:
    """The answer of most of `texts`: self-consistency (Wang et al. 2022, arXiv 2203.11171), every solution one vote.

    Solutions without an answer don't vote; None if no solution has one. Of answers with equally many votes the one
    that was given first wins, so the result depends on nothing but `texts` and their order.

    Args:
        texts: solutions of one question.
        fallback: as in `extract_answer`.

    Raises:
        ValueError: there are no texts, or they are one text.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts: {texts!r} must be a list of at least one solution; put it in a list")
    votes = Counter(
        answer for answer in (extract_answer(text, fallback=fallback) for text in texts) if answer is not None
    )
    return max(votes, key=votes.get) if votes else None  # a Counter keeps the order in which answers came


def _plain_number(text: str) -> str:
    negative = any(sign in text for sign in "-−–")
    value = Decimal(re.sub(r"[^\d.]", "", text).rstrip("."))
    if value == 0:
        return "0"
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    digits = digits.lstrip("0") or "0"
    digits = f"0{digits}" if digits.startswith(".") else digits
    return f"-{digits}" if negative else digits
