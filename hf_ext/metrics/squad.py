"""Exact match and F1 of short answers, from 0 to 100, as SQuAD and MLQA compute them.

Both compare texts after normalisation: lower case, no punctuation, no articles of the language, single spaces. Exact
match: the share of predictions equal to a right answer. F1: 2 · P · R / (P + R) over the words that prediction and
answer share, each as often as the rarer of the two has it; the best of the right answers, mean over questions. Of
two texts of which one has no words left, F1 is 1 if both have none, else 0 (as SQuAD 2 says; version 1 said 0).
English is normalised as SQuAD does, with ASCII punctuation and a, an, the. Other languages as MLQA does: punctuation
of all scripts, the language's own articles, and for Chinese every Chinese character is a word.
With `with_unanswerable` a question may have no right answer; then only a prediction of nothing is right, and a
prediction is nothing where it is empty or its no_answer_probability is above `no_answer_threshold`.
"""

import collections
import re
import string
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice


ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "es": "un una unos unas el la los las",
    "vi": "của là cái chiếc những",
    "hi": "",
    "zh": "",
    None: "",
}

CITATION = """\
@inproceedings{rajpurkar2016squad,
  title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy}, booktitle={EMNLP}, year={2016}
}
@inproceedings{rajpurkar2018know,
  title={Know What You Don't Know: Unanswerable Questions for {SQuAD}},
  author={Rajpurkar, Pranav and Jia, Robin and Liang, Percy}, booktitle={ACL}, year={2018}
}
@article{lewis2019mlqa,
  title={{MLQA}: Evaluating Cross-lingual Extractive Question Answering},
  author={Lewis, Patrick and O{\\u g}uz, Barlas and Rinott, Ruty and Riedel, Sebastian and Schwenk, Holger},
  journal={arXiv preprint arXiv:1910.07475}, year={2019}
}"""

INPUTS = """
Args:
    predictions (list): texts, or dicts with id, prediction_text and, at will, no_answer_probability.
    references (list): lists of right answers (a text for one), or dicts with id and answers, where answers is such a
        list or the data set's dict with text and answer_start. Where there are ids, predictions and references are
        matched by them, else by place.
    language (str or None): "en" (default), "de", "es", "vi", "hi", "zh"; None for any other, no articles are dropped
        then.
    with_unanswerable (bool): a question without right answers is allowed; False by default.
    no_answer_threshold (float): above it a prediction counts as nothing; 1.0 by default, so never of probabilities.
    find_best_threshold (bool): also the thresholds with the highest scores on these very data, to be used on others.

Returns:
    exact_match, f1 (floats from 0 to 100); with `with_unanswerable` and where there are such questions,
    answerable_exact_match, answerable_f1, unanswerable_accuracy; with `find_best_threshold`, best_exact_match,
    best_exact_match_threshold, best_f1, best_f1_threshold

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("squad")
    >>> metric.compute(predictions=["The Eiffel Tower", "in 1889"], references=[["Eiffel Tower"], ["1889", "the year 1889"]])
    {'exact_match': 50.0, 'f1': 83.33333333333333}
    >>> metric.compute(predictions=["der Rhein"], references=["Rhein"], language="de")
    {'exact_match': 100.0, 'f1': 100.0}
"""


class Squad(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features(
                {
                    "predictions": {
                        "id": Value("string"),
                        "prediction_text": Value("string"),
                        "no_answer_probability": Value("float64"),
                    },
                    "references": {"id": Value("string"), "answers": Sequence(Value("string"))},
                }
            ),
        )

    def prepare(self, name: str, index: int, value: Any) -> Any:
        if name == "predictions":
            value = {"id": "", "prediction_text": value} if isinstance(value, str) else value
            return {"no_answer_probability": 0.0, **value} if isinstance(value, dict) else value
        value = value if isinstance(value, dict) else {"id": "", "answers": value}
        answers = value.get("answers")
        if isinstance(answers, dict) and "text" in answers:
            answers = answers["text"]
        return {**value, "answers": [answers] if isinstance(answers, str) else answers}

    def _compute(
        self,
        predictions: list[dict],
        references: list[dict],
        language: str | None = "en",
        with_unanswerable: bool = False,
        no_answer_threshold: float = 1.0,
        find_best_threshold: bool = False,
    ) -> dict[str, float]:
        check_choice("language", language, tuple(ARTICLES))
        if not with_unanswerable and (no_answer_threshold != 1.0 or find_best_threshold):
            raise ValueError("with_unanswerable: False, but thresholds need it; set it to True or leave them out")
        pairs = _pairs(predictions, references)
        for index, (_, reference) in enumerate(pairs):
            if not reference["answers"] and not with_unanswerable:
                raise ValueError(
                    f"references[{index}]: no right answer, must have one; drop the question or set with_unanswerable=True"
                )
        raw = {
            "exact_match": [_best(exact_match, pair, language, with_unanswerable) for pair in pairs],
            "f1": [_best(f1, pair, language, with_unanswerable) for pair in pairs],
        }
        answerable = [bool(reference["answers"]) for _, reference in pairs]
        doubts = [prediction["no_answer_probability"] for prediction, _ in pairs]
        scores = {}
        parts = collections.defaultdict(list)
        for name, values in raw.items():
            final = [
                float(not can) if with_unanswerable and doubt > no_answer_threshold else value
                for value, can, doubt in zip(values, answerable, doubts, strict=True)
            ]
            scores[name] = _percent(final)
            for value, can in zip(final, answerable, strict=True):
                parts[f"answerable_{name}" if can else "unanswerable_accuracy"].append(value)
        if not all(answerable):
            scores |= {name: _percent(values) for name, values in parts.items()}
        if find_best_threshold:
            for name, values in raw.items():
                scores |= _best_threshold(name, values, answerable, doubts)
        return scores


def normalize_answer(text: str, language: str | None = "en") -> list[str]:
    """The words of `text` that count."""
    dropped = punctuation(ascii_only=language == "en")
    text = "".join(char for char in text.lower() if char not in dropped)
    articles = ARTICLES[language].split()
    if articles:
        text = re.sub(rf"\b({'|'.join(articles)})\b", " ", text)
    if language == "zh":
        text = re.sub(r"([\u4e00-\u9fa5])", r" \1 ", text)
    return text.split()


@cache
def punctuation(ascii_only: bool) -> frozenset[str]:
    """The characters that normalisation drops."""
    if ascii_only:
        return frozenset(string.punctuation)
    every = (chr(code) for code in range(sys.maxunicode + 1))
    return frozenset(char for char in every if unicodedata.category(char)[0] == "P") | frozenset(string.punctuation)


def exact_match(prediction: list[str], answer: list[str]) -> float:
    """1 if the words are the same, else 0."""
    return float(prediction == answer)


def f1(prediction: list[str], answer: list[str]) -> float:
    """F1 of the words; 1 if neither has any."""
    if not prediction or not answer:
        return float(prediction == answer)
    shared = (collections.Counter(prediction) & collections.Counter(answer)).total()
    return 2 * shared / (len(prediction) + len(answer))


def _best(score: Callable, pair: tuple[dict, dict], language: str | None, with_unanswerable: bool) -> float:
    words = normalize_answer(pair[0]["prediction_text"], language)
    answers = [normalize_answer(answer, language) for answer in pair[1]["answers"]]
    if with_unanswerable:  # SQuAD 2: an answer of which nothing is left is no answer
        answers = [answer for answer in answers if answer] or [[]]
    return max(score(words, answer) for answer in answers)


def _pairs(predictions: list[dict], references: list[dict]) -> list[tuple[dict, dict]]:
    """Predictions with their references, by id where there are ids."""
    if not any(row["id"] for row in (*predictions, *references)):
        return list(zip(predictions, references, strict=True))
    by_id = {row["id"]: row for row in predictions}
    for name, rows in (("predictions", predictions), ("references", references)):
        for key, count in collections.Counter(row["id"] for row in rows).items():
            if count > 1 or not key:
                raise ValueError(
                    f"{name}: id {key!r} is there {count} times, must be one of each question; or give no ids"
                )
    for reference in references:
        if reference["id"] not in by_id:
            raise ValueError(f"predictions: none with id {reference['id']!r}, must be one of each reference; add it")
    return [(by_id[reference["id"]], reference) for reference in references]


def _best_threshold(name: str, values: list[float], answerable: list[bool], doubts: list[float]) -> dict[str, float]:
    """The threshold with the highest mean, the lowest of equals; below all doubts nothing is answered."""
    order = sorted(range(len(values)), key=doubts.__getitem__)
    gains = (values[i] - float(not answerable[i]) for i in order)
    totals = list(accumulate(gains, initial=float(answerable.count(False))))
    candidates = [(totals[0], doubts[order[0]] - 1.0)]
    for place, i in enumerate(order):
        if place + 1 == len(order) or doubts[order[place + 1]] > doubts[i]:  # equal doubts are answered together
            candidates.append((totals[place + 1], doubts[i]))
    total, threshold = max(candidates, key=lambda candidate: candidate[0])
    return {f"best_{name}": 100 * total / len(values), f"best_{name}_threshold": threshold}


def _percent(values: list[float]) -> float:
    return 100 * sum(values) / len(values)
