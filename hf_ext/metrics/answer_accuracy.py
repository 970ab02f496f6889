"""Answer accuracy = the share of worked solutions whose final number is the right one, whatever the steps before it.

The answer is the first number on the line after the first `####`, as GSM8K writes it, or the whole text if that is a
number alone; with `fallback` the last number of a text without one. Numbers are compared exactly: 7 = 7.0 = $7, but
7.1 is not 7. A solution without an answer is wrong; how many there are is a score of its own, since a wrong form is
not a wrong number.
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.answers import extract_answer
from hf_ext.metrics.checked_metric import CheckedMetric


CITATION = """\
@article{cobbe2021training,
  title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe, Karl and Kosaraju, Vineet and Bavarian, Mohammad and Chen, Mark and others},
  journal={arXiv preprint arXiv:2110.14168}, year={2021}
}"""

INPUTS = """
Args:
    predictions (list of str): the solutions.
    references (list of str): the right solutions, or their numbers alone.
    fallback (bool): the last number counts where none follows a `####`; False by default.

Returns:
    answer_accuracy, without_answer (shares from 0 to 1); with `fallback` also by_fallback, the share that needed it

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("answer_accuracy")
    >>> solutions = ["2 + 3 = 5\\n#### 5 apples", "so it is $1,200.", "I don't know"]
    >>> metric.compute(predictions=solutions, references=["#### 5", "#### 1200", "7"])
    {'answer_accuracy': 0.3333333333333333, 'without_answer': 0.6666666666666666}
    >>> metric.compute(predictions=solutions, references=["#### 5", "#### 1200", "7"], fallback=True)["answer_accuracy"]
    0.6666666666666666
"""


class AnswerAccuracy(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def check_batch(self, predictions: list[str], references: list[str]) -> None:
        for index, reference in enumerate(references):
            if extract_answer(reference) is None:
                raise ValueError(
                    f"references[{index}]: {reference[-60:]!r} must end in #### and a number, or be a number; mend the data"
                )

    def _compute(self, predictions: list[str], references: list[str], fallback: bool = False) -> dict[str, float]:
        marked = [extract_answer(text) for text in predictions]
        answers = [extract_answer(text, fallback=fallback) for text in predictions]
        right = sum(one == extract_answer(other) for one, other in zip(answers, references, strict=True))
        scores = {
            "answer_accuracy": right / len(answers),
            "without_answer": answers.count(None) / len(answers),
        }
        if fallback:
            scores["by_fallback"] = (marked.count(None) - answers.count(None)) / len(answers)
        return scores
