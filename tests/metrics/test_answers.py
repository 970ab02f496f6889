"""The number at the end of a solution, accuracy of it, and the vote of several solutions."""

import json
import re

import pytest

from hf_ext.metrics import compute, extract_answer, majority_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### 1,234,567.80", "1234567.8"),
        ("####42", "42"),
        ("#### $1,200.", "1200"),
        ("#### -3", "-3"),
        ("#### −3", "-3"),
        ("#### -$3.50", "-3.5"),
        ("#### $-3.50", "-3.5"),
        ("#### 12 apples", "12"),
        ("#### 75%", "75"),
        ("#### 007.0", "7"),
        ("#### -0.0", "0"),
        ("#### .5 m", "0.5"),
        ("#### about 5 to 7", "5"),
        ("#### 5\nQuestion: 9?\n#### 9", "5"),
        ("#### 100000000000000000000000000000000000001", "100000000000000000000000000000000000001"),
        ("17", "17"),
        (" $1,000.\n", "1000"),
        ("it is 17", None),
        ("#### none\n5", None),
        ("####", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2 + 3 = 5 in all.", "5"),
        ("10-3", "3"),
        ("10 - 3", "3"),
        ("(7)-2", "2"),
        ("x = -3.", "-3"),
        ("from 1990–1995", "1995"),
        ("#### none, or 5", "5"),
        ("#### seven\nno, 8", "8"),
        ("nothing", None),
        ("#### 4\n and 5", "4"),
    ],
)
def test_the_last_number_where_there_is_no_mark(text, answer):
    assert extract_answer(text, fallback=True) == answer


def test_every_answer_of_gsm8k_is_found(real_data):
    texts = [
        json.loads(line)["answer"]
        for path in sorted((real_data / "gsm8k").rglob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(texts) > 100
    for text in texts:
        published = re.search(r"#### (\-?[0-9\.\,]+)", text).group(1).replace(",", "")
        assert float(extract_answer(text)) == float(published)
    assert compute("answer_accuracy", texts, texts)["answer_accuracy"] == 1.0


def test_accuracy_by_hand():
    predictions = ["#### 5.0", "so 1,200", "#### 8", "no idea", "12"]
    references = ["#### 5", "#### 1200", "#### 7", "#### 7", "#### 12"]
    assert compute("answer_accuracy", predictions, references) == {"answer_accuracy": 2 / 5, "without_answer": 2 / 5}
    assert compute("answer_accuracy", predictions, references, fallback=True) == {
        "answer_accuracy": 3 / 5,
        "without_answer": 1 / 5,
        "by_fallback": 1 / 5,
    }
    assert compute("answer_accuracy", ["#### 7.1"], ["7"])["answer_accuracy"] == 0.0


def test_majority():
    assert majority_answer(["#### 3", "#### 5", "#### 5.0"]) == "5"
    assert majority_answer(["#### 3", "no", "#### 5"]) == "3"  # as many votes each: the first
    assert majority_answer(["#### 5", "#### 3", "#### 3", "#### 5"]) == "5"
    assert majority_answer(["no", "neither"]) is None
    assert majority_answer(["it is 4", "it is 4"]) is None
    assert majority_answer(["it is 4", "it is 5", "it is 5"], fallback=True) == "5"
    answer = majority_answer(["#### 1,000", "#### 7", "#### 1000"])
    assert compute("answer_accuracy", [answer], ["#### 1,000"])["answer_accuracy"] == 1.0


@pytest.mark.parametrize("texts", ["#### 5", []])
def test_majority_needs_a_list(texts):
    with pytest.raises(ValueError, match=r"^texts: .* must be a list of at least one solution; put it in a list$"):
        majority_answer(texts)
