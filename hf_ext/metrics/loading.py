"""Metrics by name, from this package: no network, and by default nothing is written."""

import difflib
import importlib
import os
from typing import Any


METRICS = (
    "accuracy",
    "answer_accuracy",
    "bits_per_byte",
    "chrf",
    "classification",
    "distinct_n",
    "f1",
    "matthews_correlation",
    "multilabel_classification",
    "perplexity",
    "precision",
    "recall",
    "regression",
    "repetition",
    "rouge",
    "sacrebleu",
    "seqeval",
    "squad",
)


def load_metric(name: str, **kwargs: Any) -> Any:
    """The metric `name` of `METRICS` as an `evaluate.Metric`: what `evaluate.load` of its file gives, but nothing is copied.

    Args:
        name: one of `METRICS`.
        kwargs: `evaluate.Metric`'s own: `config_name` ("multilabel" for f1, precision and recall), `seed`, and for
            several processes that share what they add `num_process`, `process_id`, `experiment_id`, `cache_dir`.
            With one process the inputs stay in memory unless `keep_in_memory=False`.

    Raises:
        ValueError: there is no such metric.
        ImportError: a package that it computes with is missing.
    """
    if name not in METRICS:
        nearest = difflib.get_close_matches(str(name), METRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"name: no metric {name!r}; did you mean {nearest!r}? There are {', '.join(METRICS)}")
    kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
    try:
        module = importlib.import_module(f"hf_ext.metrics.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"name: {name} needs the package {error.name}; pip install 'hf_ext[train]'") from error
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    (metric,) = (value for value in own if isinstance(value, type) and hasattr(value, "_compute"))
    return metric(**kwargs)


def metric_file(name: str) -> str:
    """The path of the metric's file, for `evaluate.load`."""
    return os.path.join(os.path.dirname(__file__), f"{name}.py")


def compute(
    name: str, predictions: Any, references: Any = None, *, config_name: str | None = None, **kwargs: Any
) -> dict[str, Any]:
    """The metric `name` of all examples at once; `kwargs` are the metric's own options.

    >>> compute("accuracy", [0, 1, 1], [0, 1, 0])
    {'accuracy': 0.6666666666666666}
    """
    return load_metric(name, config_name=config_name).compute(predictions=predictions, references=references, **kwargs)
