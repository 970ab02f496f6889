"""Scores of classes, with one meaning of `average` and `labels` for all metrics, and what all of them refuse."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support
from transformers.utils import logging

from hf_ext.metrics.checked_metric import check_choice


logger = logging.get_logger(__name__)

AVERAGES = ("binary", "micro", "macro", "weighted", None)


def check_labels(predictions: list[int], references: list[int]) -> None:
    """No label is negative: -100 and its like are not classes."""
    for name, values in (("predictions", predictions), ("references", references)):
        for index, value in enumerate(values):
            if value < 0:
                raise ValueError(
                    f"{name}[{index}]: {value} must be a class, 0 or above; drop the places that the loss ignores first"
                )


def check_known(predictions: list[int], references: list[int], labels: Sequence[int] | None) -> None:
    """All of both are among `labels`."""
    for name, values in (("predictions", predictions), ("references", references)):
        for index, value in enumerate(values):
            if labels is not None and value not in labels:
                raise ValueError(
                    f"{name}[{index}]: {value} is not among the labels {list(labels)}; give all classes there"
                )


def check_rows(predictions: list[list], references: list[list[int]]) -> None:
    """Every example has one entry a label, as many as the first, and references are 0 and 1."""
    for name, rows in (("predictions", predictions), ("references", references)):
        for index, row in enumerate(rows):
            if len(row) != len(references[0]) or not row:
                raise ValueError(
                    f"{name}[{index}]: {len(row)} entries for {len(references[0])} labels, must be one a label; give each "
                    "example a row of 0 and 1"
                )
    check_indicators("references", references)


def check_indicators(name: str, rows: list[list[int]]) -> None:
    """All entries are 0 or 1."""
    for index, row in enumerate(rows):
        for place, value in enumerate(row):
            if value not in (0, 1):
                raise ValueError(
                    f"{name}[{index}][{place}]: {value} must be 0 or 1, whether the label holds; give a row of 0 and 1"
                )


def averaged_scores(
    predictions: list,
    references: list,
    *,
    average: str | None = "binary",
    labels: Sequence[int] | None = None,
    pos_label: int = 1,
) -> dict[str, float | list[float]]:
    """precision, recall and f1; 0 where nothing stands below the fraction's line.

    Args:
        predictions, references: one class an example, or rows of 0 and 1 with one entry a label (multi-label).
        average: "binary", of the class `pos_label`; "micro", of the sums of all classes; "macro", the classes' mean;
            "weighted", the same weighted by how often a class is in the references; None, a list with one entry a
            class.
        labels: the classes to average; those that occur in either by default, or all columns.
        pos_label: the class that "binary" is about.

    Raises:
        ValueError: an unknown average, a class outside `labels`, more than two classes with "binary", `pos_label`
            with another average.
    """
    check_choice("average", average, AVERAGES)
    multilabel = isinstance(references[0], list)
    if average == "binary":
        if multilabel:
            raise ValueError("average: 'binary' is for two classes, not for rows; say 'micro', 'macro' or 'weighted'")
        if labels is not None:
            raise ValueError(f"labels: {list(labels)} has no effect with average 'binary'; leave it out")
        found = sorted({*predictions, *references, pos_label})
        if len(found) > 2:
            raise ValueError(
                f"average: 'binary' is for two classes, but there are {found}; say 'micro', 'macro' or 'weighted'"
            )
    elif pos_label != 1:
        raise ValueError(f"pos_label: {pos_label} has no effect with average {average!r}; say 'binary' or leave it out")
    if multilabel:
        check_rows(predictions, references)  # batches that were added one by one may differ
    else:
        check_known(predictions, references, labels)
    scores = precision_recall_fscore_support(
        np.array(references),
        np.array(predictions),
        labels=[pos_label] if average == "binary" else labels,
        average="macro" if average == "binary" else average,
        zero_division=0,
    )
    return {
        name: np.asarray(score).tolist() for name, score in zip(("precision", "recall", "f1"), scores, strict=False)
    }


def accuracy(predictions: list[int], references: list[int]) -> float:
    """The share of examples whose class is right."""
    return sum(one == other for one, other in zip(predictions, references, strict=True)) / len(references)


def matthews_correlation(predictions: list[int], references: list[int]) -> float:
    """From -1 to 1; 0, with a warning, where all of either are one class and it would be 0/0."""
    for name, values in (("predictions", predictions), ("references", references)):
        if len(set(values)) == 1:
            logger.warning(f"matthews_correlation: all {name} are {values[0]}, so it is undefined; 0 is given")
            return 0.0
    return float(matthews_corrcoef(references, predictions))
