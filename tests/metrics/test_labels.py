"""Accuracy, precision, recall, F1, Matthews correlation, several labels: by hand, and against scikit-learn."""

import logging
import random

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_ext.metrics import compute


SAME_SUMS = 1e-12  # the same arithmetic in float64


def random_labels(seed: int, classes: int, count: int = 200) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    references = [rng.randrange(classes) for _ in range(count)]
    predictions = [rng.choice([label, rng.randrange(classes)]) for label in references]
    return predictions, references


# TP 2, FP 1, FN 1, TN 1 for class 1
HAND = ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])


def test_by_hand():
    scores = compute("classification", *HAND)
    assert scores["accuracy"] == 3 / 5
    assert scores["precision"] == 2 / 3
    assert scores["recall"] == 2 / 3
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert compute("f1", *HAND, pos_label=0) == {"f1": 0.5}
    assert compute("f1", *HAND, average=None)["f1"] == pytest.approx([0.5, 2 / 3])
    assert compute("f1", *HAND, average="macro")["f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert compute("f1", *HAND, average="weighted")["f1"] == pytest.approx((2 * 0.5 + 3 * 2 / 3) / 5)
    assert compute("f1", *HAND, average="micro")["f1"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_averages_are_those_of_scikit_learn(name, average):
    predictions, references = random_labels(0, classes=5)
    theirs = getattr(sklearn_metrics, f"{name}_score")(references, predictions, average=average)
    assert compute(name, predictions, references, average=average)[name] == pytest.approx(theirs, rel=SAME_SUMS)
    rows = np.random.default_rng(0).integers(0, 2, (2, 50, 4))
    theirs = getattr(sklearn_metrics, f"{name}_score")(rows[1], rows[0], average=average)
    ours = compute(name, rows[0], rows[1], config_name="multilabel", average=average)
    assert ours[name] == pytest.approx(theirs, rel=SAME_SUMS)


@pytest.mark.parametrize("classes", [2, 5])
def test_matthews_correlation_is_that_of_scikit_learn(classes):
    predictions, references = random_labels(1, classes)
    theirs = sklearn_metrics.matthews_corrcoef(references, predictions)
    ours = compute("matthews_correlation", predictions, references)["matthews_correlation"]
    assert ours == pytest.approx(theirs, rel=SAME_SUMS)


def test_macro_counts_classes_that_do_not_occur():
    assert compute("f1", [0, 1], [0, 1], average="macro") == {"f1": 1.0}
    assert compute("f1", [0, 1], [0, 1], average="macro", labels=[0, 1, 2])["f1"] == pytest.approx(2 / 3)
    assert compute("classification", [0, 1], [0, 1], average="macro", num_labels=3)["recall"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("references", [[1, 0, 1], [1, 1, 1]])
def test_one_class_alone_has_no_correlation_and_the_log_says_so(references, caplog):
    logger = logging.getLogger("hf_ext.metrics.labels")
    logger.addHandler(caplog.handler)
    try:
        scores = compute("classification", [1, 1, 1], references)
    finally:
        logger.removeHandler(caplog.handler)
    assert scores["matthews_correlation"] == 0.0
    assert "all predictions are 1, so it is undefined; 0 is given" in caplog.text


def test_nothing_predicted_and_nothing_there_is_zero():
    assert compute("f1", [0, 0], [0, 0]) == {"f1": 0.0}
    assert compute("precision", [0, 0], [1, 0]) == {"precision": 0.0}


def test_several_labels_by_hand():
    scores = compute(
        "multilabel_classification",
        [[0.9, 0.6, 0.1], [0.2, 0.7, 0.6], [0.1, 0.2, 0.3]],
        [[1, 1, 0], [0, 0, 1], [0, 0, 0]],
    )
    assert scores["subset_accuracy"] == 2 / 3
    assert scores["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 0))
    assert scores["f1_macro"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    # first row: both labels are on top; second: the label is second of two; third: no label holds
    assert scores["label_ranking_average_precision"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_a_score_at_the_threshold_is_not_above_it():
    assert compute("multilabel_classification", [[0.5, 0.5]], [[0, 0]])["subset_accuracy"] == 1.0


def test_several_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    logits, references = rng.normal(size=(60, 5)), rng.integers(0, 2, (60, 5))
    scores = compute("multilabel_classification", logits, references, threshold=0.0)
    predicted = logits > 0
    assert scores["subset_accuracy"] == sklearn_metrics.accuracy_score(references, predicted)
    for average in ("micro", "macro"):
        theirs = sklearn_metrics.f1_score(references, predicted, average=average)
        assert scores[f"f1_{average}"] == pytest.approx(theirs, rel=SAME_SUMS)
    theirs = sklearn_metrics.label_ranking_average_precision_score(references, logits)
    assert scores["label_ranking_average_precision"] == pytest.approx(theirs, rel=SAME_SUMS)
    probabilities = 1 / (1 + np.exp(-logits))
    assert compute("multilabel_classification", probabilities, references) == scores
