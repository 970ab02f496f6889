"""Accuracy = the share of examples whose predicted class is the true one.

Where one class is frequent it is high without any skill: beside it belongs the share of the most frequent class, or
the Matthews correlation.
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.labels import accuracy, check_known, check_labels


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
    labels (list of int): the classes; none may be outside. Not checked by default.

Returns:
    accuracy (float from 0 to 1)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> load_metric("accuracy").compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
    {'accuracy': 0.75}
"""


class Accuracy(CheckedMetric):
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
        return {"accuracy": accuracy(predictions, references)}
