"""Texts as sentences, by lines or by punctuation."""

import re

from hf_ext.models.configuration_choices import check_choice


UNITS = ("sentences", "lines")
# after . ! ? … and what closes a quotation or a bracket, before a space and what a sentence begins with; or at a line's end
_END = re.compile(r"(?<=[.!?…。！？])[\"'”’»)\]]*\s+(?=[^\s.,;:!?)\]a-z])|\s*\n\s*")
# a period after one of these ends no sentence
_ABBREVIATIONS = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|e\.g|i\.e|[A-Z])\.$")


def split_sentences(text: str, unit: str = "sentences") -> list[str]:
    """The sentences of a text, or its lines (the turns of a dialogue), each as it stands there, without spaces around it.

    A sentence ends with `.`, `!`, `?` or `…`, and what closes a quotation, before a space and no small letter, unless that
    is the period of an abbreviation; or with its line. It is a rule of thumb that needs no model, and may cut too often or
    too rarely, but no character is lost.

    Raises:
        ValueError: an unknown unit.
    """
    check_choice("unit", unit, UNITS)
    if unit == "lines":
        return [line.strip() for line in text.splitlines() if line.strip()]
    sentences, start = [], 0
    for found in _END.finditer(text):
        end = found.start() + len(found.group().rstrip())
        if "\n" not in found.group() and _ABBREVIATIONS.search(text[start:end]):
            continue
        if text[start:end].strip():
            sentences.append(text[start:end].strip())
        start = found.end()
    if text[start:].strip():
        sentences.append(text[start:].strip())
    return sentences
