"""Matthews correlation: the correlation of predicted and true class, from -1 to 1, 0 without skill.

For two classes (TP · TN - FP · FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)); for more, Gorodkin's generalization
over the confusion matrix. Where all predictions or all references are one class it is 0/0; 0 is given, and the log
says so.
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.labels import check_known, check_labels, matthews_correlation


CITATION = """\
@article{gorodkin2004comparing,
  title={Comparing two {K}-category assignments by a {K}-category correlation coefficient},
  author={Gorodkin, Jan}, journal={Computational Biology and Chemistry}, volume={28}, pages={367--374}, year={2004}
}"""

INPUTS = """
Args:
    predictions (list of int): the predicted classes.
    references (list of int): the true ones.
    labels (list of int): the classes; none may be outside. Not checked by default.

Returns:
    matthews_correlation (float from -1 to 1)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> load_metric("matthews_correlation").compute(predictions=[1, 1, 0, 1], references=[1, 1, 0, 0])
    {'matthews_correlation': 0.5773502691896258}
"""


class MatthewsCorrelation(CheckedMetric):
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
        self, predictions: list[int], references: list[int], labels: list[int] | None = None
    ) -> dict[str, float]:
        check_known(predictions, references, labels)
        return {"matthews_correlation": matthews_correlation(predictions, references)}
