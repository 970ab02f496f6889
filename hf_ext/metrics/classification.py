"""Accuracy, precision, recall, F1 and Matthews correlation of one class an example, at once.

Each as in the metric of its own name. With the default average precision, recall and F1 are class 1's; for more than
two classes say "macro", "micro" or "weighted".
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.labels import accuracy, averaged_scores, check_known, check_labels, matthews_correlation


CITATION = """\
@article{pedregosa2011scikit,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}"""

INPUTS = """
Args:
    predictions (list of int): the predicted classes.
    references (list of int): the true ones.
    average (str): "binary" (default), "micro", "macro" or "weighted".
    num_labels (int): how many classes there are; none may be outside 0..num_labels-1, and "macro" is the mean of all
        of them.

Returns:
    accuracy, precision, recall, f1 (floats from 0 to 1), matthews_correlation (float from -1 to 1)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("classification")
    >>> scores = metric.compute(predictions=[1, 1, 0, 1], references=[1, 1, 0, 0])
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'accuracy': 0.75, 'precision': 0.667, 'recall': 1.0, 'f1': 0.8, 'matthews_correlation': 0.577}
"""


class Classification(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def check_batch(self, predictions: list[int], references: list[int]) -> None:
        check_labels(predictions, references)

    def _compute(
        self, predictions: list[int], references: list[int], average: str = "binary", num_labels: int | None = None
    ) -> dict[str, float]:
        labels = None if num_labels is None else list(range(num_labels))
        check_known(predictions, references, labels)
        return {
            "accuracy": accuracy(predictions, references),
            **averaged_scores(predictions, references, average=average, labels=None if average == "binary" else labels),
            "matthews_correlation": matthews_correlation(predictions, references),
        }
