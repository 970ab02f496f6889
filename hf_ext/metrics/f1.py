"""F1 = 2 · precision · recall / (precision + recall) = 2 TP / (2 TP + FP + FN).

With average "binary" it is the class `pos_label`'s; "micro" sums the counts of all classes first (for one class an
example this is the accuracy); "macro" is the classes' mean, a rare class counts as much as a frequent one;
"weighted" weights that mean by how often a class is in the references; None gives a list, one entry a class. A
fraction of nothing by nothing is 0. The classes are `labels`, or those that occur in predictions or references.
"""

import evaluate
from datasets import Features, Sequence, Value

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.labels import averaged_scores, check_indicators, check_labels, check_rows


CITATION = """\
@article{pedregosa2011scikit,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}"""

INPUTS = """
Args:
    predictions (list of int): the predicted classes. With config_name="multilabel", rows of 0 and 1, one entry a
        label.
    references (list of int): the true ones, in the same form.
    average (str or None): "binary" (default), "micro", "macro", "weighted", or None for a list.
    labels (list of int): the classes, where not all of them need occur. No class may be outside.
    pos_label (int): the class that "binary" is about, 1 by default.

Returns:
    f1 (float from 0 to 1, or a list of them)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("f1")
    >>> metric.compute(predictions=[1, 0, 0, 0], references=[1, 1, 0, 0])
    {'f1': 0.6666666666666666}
    >>> metric.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2], average="micro")
    {'f1': 0.75}
    >>> metric = load_metric("f1", config_name="multilabel")
    >>> metric.compute(predictions=[[1, 0], [0, 1]], references=[[1, 1], [0, 1]], average=None)
    {'f1': [1.0, 0.6666666666666666]}
"""


class F1(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        row = Value("int64") if self.config_name != "multilabel" else Sequence(Value("int64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": row, "references": row}),
        )

    def check_batch(self, predictions: list, references: list) -> None:
        if self.config_name != "multilabel":
            check_labels(predictions, references)
        else:
            check_rows(predictions, references)
            check_indicators("predictions", predictions)

    def _compute(
        self,
        predictions: list,
        references: list,
        average: str | None = "binary",
        labels: list[int] | None = None,
        pos_label: int = 1,
    ) -> dict[str, float | list[float]]:
        scores = averaged_scores(predictions, references, average=average, labels=labels, pos_label=pos_label)
        return {"f1": scores["f1"]}
