"""Texts as sentences: none lost, none cut after an abbreviation."""

import pytest

from hf_ext.data import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Dr. Shah met J. Ortiz. He paid 3.50 euros, e.g. in coins.",
            ["Dr. Shah met J. Ortiz.", "He paid 3.50 euros, e.g. in coins."],
        ),
        (
            "“Come in!” He did. (It was late.) Then… silence.",
            ["“Come in!”", "He did.", "(It was late.)", "Then… silence."],
        ),
        ("Title\n\n A line. Another.\n", ["Title", "A line.", "Another."]),
        ("Ähren. Über Köln!", ["Ähren.", "Über Köln!"]),
        ("   ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
    assert "".join("".join(sentences).split()) == "".join(text.split())  # no character is lost


def test_lines_are_turns():
    assert split_sentences("#A#: Hi. You?\n\n #B#: Fine.\r\n", "lines") == ["#A#: Hi. You?", "#B#: Fine."]
    with pytest.raises(ValueError, match="unit='turns': must be one of sentences, lines"):
        split_sentences("a", "turns")


def test_no_character_of_real_text_is_lost(real_data):
    file = real_data / "wikitext2" / "valid.txt"
    if not file.is_file():
        pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    text = file.read_text(encoding="utf-8")[:200_000]
    sentences = split_sentences(text)
    assert len(sentences) > 500
    assert "".join("".join(sentences).split()) == "".join(text.split())
