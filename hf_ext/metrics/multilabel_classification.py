"""Several labels an example, each of which holds or does not, from the scores of all labels.

A label is predicted where its score is above the threshold. Subset accuracy: the share of examples whose whole row
is right. Micro F1: of the counts of all labels together; macro F1: the labels' mean, 0 for a label that is neither
there nor predicted. Label ranking average precision asks for no threshold: for each label that holds, which share of
the labels scored at least as high hold too; mean over the example's labels, then over examples (an example where
none or all hold counts 1).
"""

import evaluate
import numpy as np
from datasets import Features, Sequence, Value
from sklearn.metrics import label_ranking_average_precision_score

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.labels import averaged_scores, check_rows


CITATION = """\
@incollection{tsoumakas2010mining,
  title={Mining Multi-label Data}, author={Tsoumakas, Grigorios and Katakis, Ioannis and Vlahavas, Ioannis},
  booktitle={Data Mining and Knowledge Discovery Handbook}, pages={667--685}, year={2010}
}"""

INPUTS = """
Args:
    predictions (list of lists of float): the score of every label, a probability or a logit.
    references (list of lists of int): 1 where the label holds, else 0.
    threshold (float): above it a label is predicted. 0.5 by default, and then all scores must be from 0 to 1; of
        logits that is 0.0.

Returns:
    subset_accuracy, f1_micro, f1_macro, label_ranking_average_precision (floats from 0 to 1)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("multilabel_classification")
    >>> scores = metric.compute(predictions=[[0.9, 0.1], [0.6, 0.7]], references=[[1, 0], [0, 1]])
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'subset_accuracy': 0.5, 'f1_micro': 0.8, 'f1_macro': 0.833, 'label_ranking_average_precision': 1.0}
"""


class MultilabelClassification(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64")), "references": Sequence(Value("int64"))}),
        )

    def check_batch(self, predictions: list[list[float]], references: list[list[int]]) -> None:
        check_rows(predictions, references)

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]], threshold: float | None = None
    ) -> dict[str, float]:
        check_rows(predictions, references)  # batches that were added one by one may differ
        scores = np.array(predictions)
        if threshold is None:
            if scores.min() < 0 or scores.max() > 1:
                raise ValueError(
                    f"threshold: none given, but scores reach from {scores.min():.3g} to {scores.max():.3g} and are no "
                    "probabilities; of logits give threshold=0.0"
                )
            threshold = 0.5
        predicted = (scores > threshold).astype(int).tolist()
        right = sum(one == other for one, other in zip(predicted, references, strict=True))
        return {
            "subset_accuracy": right / len(references),
            "f1_micro": averaged_scores(predicted, references, average="micro")["f1"],
            "f1_macro": averaged_scores(predicted, references, average="macro")["f1"],
            "label_ranking_average_precision": float(label_ranking_average_precision_score(references, scores)),
        }
