"""Errors and correlations of numbers.

mse = mean((p - r)²); mae = mean(|p - r|); pearson: the linear correlation; spearman: pearson of the ranks, where
equal values share their mean rank; r2 = 1 - sum((p - r)²) / sum((r - mean r)²), at most 1, 0 for who predicts the
references' mean. What has no value is given one, and the log says so: correlations are 0 where predictions or
references are constant; r2 is 1 where the references are constant and all predictions right, else 0.
"""

import evaluate
import numpy as np
from datasets import Features, Value
from transformers.utils import logging

from hf_ext.metrics.checked_metric import CheckedMetric


logger = logging.get_logger(__name__)

CITATION = """\
@article{pedregosa2011scikit,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}"""

INPUTS = """
Args:
    predictions (list of float): the predicted numbers, one an example, in the references' unit.
    references (list of float): the true ones.

Returns:
    mse, mae (floats, 0 at best, in the unit squared and in the unit), pearson, spearman (from -1 to 1), r2 (at most
    1)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> scores = load_metric("regression").compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'mse': 0.333, 'mae': 0.333, 'pearson': 0.982, 'spearman': 1.0, 'r2': 0.5}
"""


class Regression(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        errors = predicted - true
        scores = {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors)))}
        constant = [
            name for name, values in (("predictions", predicted), ("references", true)) if values.min() == values.max()
        ]
        if constant:
            logger.warning(f"regression: all {constant[0]} are equal, so correlations are undefined; 0 is given")
            scores |= {"pearson": 0.0, "spearman": 0.0}
        else:
            scores |= {"pearson": correlation(predicted, true), "spearman": correlation(ranks(predicted), ranks(true))}
        if "references" in constant:
            logger.warning(
                "regression: all references are equal, so r2 is undefined; 1 is given if all are met, else 0"
            )
            scores["r2"] = float(not errors.any())
        else:
            # both sums in units of the widest deviation: squares of very small numbers would vanish
            deviations = true - true.mean()
            unit = np.abs(deviations).max()
            scores["r2"] = float(1 - np.sum((errors / unit) ** 2) / np.sum((deviations / unit) ** 2))
        return scores


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two (N,) arrays, neither of which is constant."""
    first, second = ((values - values.mean()) / np.abs(values - values.mean()).max() for values in (first, second))
    return float(np.clip(first @ second / np.sqrt((first @ first) * (second @ second)), -1, 1))


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) ranks from 1; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
