"""Errors and correlations: by hand, against scikit-learn and scipy, and where they have no value."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_ext.metrics import compute


SAME_SUMS = 1e-10  # the same sums in float64, in another order


def test_by_hand():
    scores = compute("regression", [1.0, 2.0, 6.0], [1.0, 3.0, 5.0])
    assert scores["mse"] == pytest.approx(2 / 3)
    assert scores["mae"] == pytest.approx(2 / 3)
    assert scores["r2"] == pytest.approx(1 - 2 / 8)
    assert scores["spearman"] == 1.0
    # deviations -2, -1, 3 and -2, 0, 2
    assert scores["pearson"] == pytest.approx((4 + 0 + 6) / (14 * 8) ** 0.5)


@pytest.mark.parametrize("scale", [1e-180, 1.0, 1e150])
def test_the_same_as_scikit_learn_and_scipy(scale):
    rng = np.random.default_rng(0)
    references = rng.normal(size=100).round(1)  # rounded, so that some are equal and share their rank
    predictions = (references + rng.normal(size=100)).round(1)
    scores = compute("regression", predictions * scale, references * scale)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(predictions, references)[0], rel=SAME_SUMS)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(predictions, references)[0], rel=SAME_SUMS)
    assert scores["r2"] == pytest.approx(sklearn_metrics.r2_score(references, predictions), rel=SAME_SUMS)
    if scale == 1.0:
        assert scores["mse"] == pytest.approx(
            sklearn_metrics.mean_squared_error(references, predictions), rel=SAME_SUMS
        )
        assert scores["mae"] == pytest.approx(
            sklearn_metrics.mean_absolute_error(references, predictions), rel=SAME_SUMS
        )


def test_the_opposite_has_correlation_minus_one():
    scores = compute("regression", [3.0, 2.0, 1.0], [1.0, 2.0, 3.0])
    assert scores["pearson"] == pytest.approx(-1)
    assert scores["spearman"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([2.0, 2.0], [1.0, 3.0], {"pearson": 0.0, "spearman": 0.0, "r2": 0.0}),
        ([1.0, 3.0], [2.0, 2.0], {"pearson": 0.0, "spearman": 0.0, "r2": 0.0}),
        ([2.0, 2.0], [2.0, 2.0], {"pearson": 0.0, "spearman": 0.0, "r2": 1.0}),
        ([5.0], [5.0], {"pearson": 0.0, "spearman": 0.0, "r2": 1.0}),
    ],
)
def test_constants_have_the_value_of_the_description(predictions, references, expected):
    scores = compute("regression", predictions, references)
    assert {name: scores[name] for name in expected} == expected
