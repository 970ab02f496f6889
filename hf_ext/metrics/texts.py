"""Texts against one or several references, and texts as words of any script."""

import re
import unicodedata


# Scripts without spaces between words: each character is a word of its own. Thai, Lao, Khmer and Burmese are not among them.
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_EAST_ASIAN_CHARACTER = re.compile(f"([{_EAST_ASIAN}])")


def as_references(name: str, value: str | list[str]) -> str | list[str]:
    """A lone reference as a list of one."""
    return [value] if name == "references" and isinstance(value, str) else value


def check_references(references: list[list[str]]) -> None:
    """Every example has a reference."""
    for index, texts in enumerate(references):
        if not texts:
            raise ValueError(f"references[{index}]: empty, there must be at least one text; drop the example")


def reference_streams(references: list[list[str]]) -> list[list[str | None]]:
    """N lists of references -> as many streams of N as the longest list has, None where an example has no more."""
    most = max(map(len, references))
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


def unicode_words(text: str) -> list[str]:
    """The words of `text`, lower-cased: letters, marks and digits of any script; East Asian characters one by one."""
    text = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text)
    return _EAST_ASIAN_CHARACTER.sub(r" \1 ", kept).split()
