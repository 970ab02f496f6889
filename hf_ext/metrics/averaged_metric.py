"""Scores that average over classes: what F1, precision and recall share as metrics of `evaluate`."""

import abc

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


class AveragedMetric(CheckedMetric):
    """One of the scores of `averaged_scores`, by its name; a metric gives the name and its description."""

    @property
    @abc.abstractmethod
    def score(self) -> str:
        """ "f1", "precision" or "recall"."""

    @property
    @abc.abstractmethod
    def texts(self) -> tuple[str, str]:
        """The metric's description, and that of its inputs."""

    def _info(self) -> evaluate.MetricInfo:
        row = Value("int64") if self.config_name != "multilabel" else Sequence(Value("int64"))
        description, inputs = self.texts
        return evaluate.MetricInfo(
            description=description,
            citation=CITATION,
            inputs_description=inputs,
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
        return {self.score: scores[self.score]}
