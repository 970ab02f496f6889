"""Exact match and F1 of answers: by hand, against the rules of the published scripts, with and without an answer."""

import random
import re
import string
from collections import Counter

import pytest

from hf_ext.metrics import compute, load_metric
from hf_ext.metrics.squad import normalize_answer


def test_by_hand():
    scores = compute("squad", ["the big red dog!", "cat"], [["Big dog", "a big red dog"], ["dog"]])
    assert scores == {"exact_match": 50.0, "f1": 50.0}
    scores = compute("squad", ["in the year 1889"], [["1889"]])
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(100 * 2 * (1 / 3) * 1 / (1 / 3 + 1))}
    assert compute("squad", ["a b b"], ["b b b c"])["f1"] == pytest.approx(100 * 2 * 2 / (2 + 4))  # "a" is an article


def by_the_script(text: str) -> str:
    """SQuAD's normalisation, written down from its description: lower case, punctuation, articles, white space."""
    kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def test_english_is_normalised_as_squad_does():
    rng = random.Random(0)
    alphabet = ["The ", "a ", "an", "-", "x", "Y", " ", "'s", ".", "the", "\t", "“", "é"]
    predictions, references = [], []
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 8)))
        assert " ".join(normalize_answer(text)) == by_the_script(text)
        predictions.append(text)
        references.append(["".join(rng.choices(alphabet, k=4)), text[: rng.randint(0, 8)]])
    right = sum(
        any(by_the_script(text) == by_the_script(answer) for answer in answers)
        for text, answers in zip(predictions, references, strict=True)
    )
    total = 0.0
    for text, answers in zip(predictions, references, strict=True):
        best = 0.0
        for answer in answers:
            one, other = by_the_script(text).split(), by_the_script(answer).split()
            shared = sum((Counter(one) & Counter(other)).values())
            if not one or not other:
                best = max(best, float(one == other))
            elif shared:
                precision, recall = shared / len(one), shared / len(other)
                best = max(best, 2 * precision * recall / (precision + recall))
        total += best
    scores = compute("squad", predictions, references)
    assert scores["exact_match"] == pytest.approx(100 * right / 300)
    assert scores["f1"] == pytest.approx(100 * total / 300)


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", "The «Rhein»", ["«rhein»"]),  # ASCII punctuation only, as SQuAD's own script
        ("de", "Der «Rhein», eine Grenze", ["rhein", "grenze"]),
        ("de", "the Rhein", ["the", "rhein"]),
        ("es", "¿El río y la mar?", ["río", "y", "mar"]),
        ("vi", "những con mèo", ["con", "mèo"]),
        ("hi", "नई दिल्ली।", ["नई", "दिल्ली"]),
        ("zh", "北京(Beijing city)。", ["北", "京", "beijing", "city"]),
        (None, "The “dog”", ["the", "dog"]),
    ],
)
def test_languages(language, text, words):
    assert normalize_answer(text, language) == words


def test_a_text_without_words_is_right_against_its_like_only():
    assert compute("squad", ["the"], ["a"]) == {"exact_match": 100.0, "f1": 100.0}
    assert compute("squad", ["the"], ["dog"]) == {"exact_match": 0.0, "f1": 0.0}


def test_the_data_set_s_own_form_matched_by_id():
    predictions = [{"id": "2", "prediction_text": "two"}, {"id": "1", "prediction_text": "one"}]
    references = [
        {"id": "1", "answers": {"text": ["one"], "answer_start": [3]}},
        {"id": "2", "answers": {"text": ["two", "2"], "answer_start": [0, 9]}},
    ]
    assert compute("squad", predictions, references) == {"exact_match": 100.0, "f1": 100.0}
    with pytest.raises(ValueError, match=r"^predictions: none with id '2'"):
        compute("squad", [{"id": "3", "prediction_text": "two"}, predictions[1]], references)
    with pytest.raises(ValueError, match=r"^predictions: id '1' is there 2 times"):
        compute("squad", [predictions[1], predictions[1]], references)
    with pytest.raises(ValueError, match=r"^predictions: id '' is there 2 times"):
        compute("squad", ["two", "one"], references)


# answered right with little doubt, answered wrong with some, unanswerable: doubted, not doubted, and left empty
PREDICTIONS = [
    {"id": "", "prediction_text": "right", "no_answer_probability": 0.1},
    {"id": "", "prediction_text": "wrong", "no_answer_probability": 0.4},
    {"id": "", "prediction_text": "guess", "no_answer_probability": 0.8},
    {"id": "", "prediction_text": "guess", "no_answer_probability": 0.2},
    {"id": "", "prediction_text": "", "no_answer_probability": 0.0},
]
REFERENCES = [["right"], ["true"], [], [], []]


def test_unanswerable_questions():
    scores = compute("squad", PREDICTIONS, REFERENCES, with_unanswerable=True)
    assert scores == {
        "exact_match": 40.0,
        "f1": 40.0,
        "answerable_exact_match": 50.0,
        "answerable_f1": 50.0,
        "unanswerable_accuracy": pytest.approx(100 / 3),
    }


def test_above_the_threshold_nothing_is_answered():
    metric = load_metric("squad")
    inputs = {"predictions": PREDICTIONS, "references": REFERENCES, "with_unanswerable": True}
    assert metric.compute(**inputs, no_answer_threshold=0.3)["exact_match"] == 60.0
    assert metric.compute(**inputs, no_answer_threshold=0.05)["exact_match"] == 60.0
    assert metric.compute(**inputs, no_answer_threshold=0.1)["exact_match"] == 80.0


def test_the_best_threshold_is_the_best_of_all():
    rng = random.Random(0)
    predictions, references = [], []
    for _ in range(60):
        doubt = rng.choice([0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0])  # with ties
        text = rng.choice(["a dog", "dog cat", "cat", ""])
        predictions.append({"id": "", "prediction_text": text, "no_answer_probability": doubt})
        references.append(rng.choice([["dog"], ["cat", "dog cat"], []]))
    inputs = {"predictions": predictions, "references": references, "with_unanswerable": True}
    metric = load_metric("squad")
    best = metric.compute(**inputs, find_best_threshold=True)
    for name in ("exact_match", "f1"):
        every = {
            threshold: metric.compute(**inputs, no_answer_threshold=threshold)[name]
            for threshold in (-1.0, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
        }
        assert best[f"best_{name}"] == pytest.approx(max(every.values()))
        assert every[best[f"best_{name}_threshold"]] == pytest.approx(max(every.values()))


def test_questions_of_equal_doubt_are_answered_together():
    predictions = [{"id": "", "prediction_text": text, "no_answer_probability": 0.5} for text in ("dog", "cat")]
    scores = compute("squad", predictions, [["dog"], []], with_unanswerable=True, find_best_threshold=True)
    assert scores["best_f1"] == 50.0
