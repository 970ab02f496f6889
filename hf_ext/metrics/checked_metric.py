"""What every metric here stands on: an `evaluate.Metric` that says in one line what is wrong with its inputs.

evaluate itself turns 0.7 into the label 0 and "1" into 1, a missing value into None, and forgets inputs that a
metric does not use. Here all of these are refused before anything is added.
"""

import abc
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
from datasets import Value


class CheckedMetric(evaluate.Metric, abc.ABC):
    """`evaluate.Metric` whose inputs are checked as they are added, and whose files no other process uses.

    A metric gives `_info` and `_compute`, and may give `prepare` for forms of input beside its features', and
    `check_batch` for what types cannot say.

    Raises:
        ValueError: several processes without an `experiment_id` of their own.
    """

    def __init__(
        self,
        config_name: str | None = None,
        keep_in_memory: bool = False,
        num_process: int = 1,
        experiment_id: str | None = None,
        **kwargs: Any,
    ):
        if experiment_id is None and num_process > 1:
            raise ValueError(
                f"experiment_id: None with num_process={num_process}; give every rank of a run the same name, which no "
                "other run has"
            )
        super().__init__(
            config_name=config_name,
            keep_in_memory=keep_in_memory,
            num_process=num_process,
            # evaluate's default is one name for all processes, which then wait for each other's locks
            experiment_id=experiment_id or f"{os.getpid()}-{uuid.uuid4().hex}",
            **kwargs,
        )

    @abc.abstractmethod
    def _info(self) -> evaluate.MetricInfo: ...

    def prepare(self, name: str, index: int, value: Any) -> Any:
        """Example `index` of the column `name` as the features have it; as it is by default."""
        return value

    def check_batch(self, **columns: list) -> None:
        """Refuses what types cannot say, with a ValueError of one line."""

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one example."""
        given = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: None if value is None else [value] for name, value in given.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds examples: lists, arrays, tensors or columns, one entry an example."""
        given = {"predictions": predictions, "references": references, **kwargs}
        names = list(self.features)
        columns = {}
        for name in names:
            if given.get(name) is None:
                raise ValueError(f"{name}: None, {self.name} needs {' and '.join(names)}; give one entry an example")
            values = _plain(given[name])
            if not isinstance(values, list):
                raise ValueError(f"{name}: {_short(values)} must be a list with one entry an example; put it in a list")
            values = [self.prepare(name, index, value) for index, value in enumerate(values)]
            for index, value in enumerate(values):
                _check_type(self.features[name], value, f"{name}[{index}]")
            columns[name] = values
        self._refuse_unused(given)
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            (one, n), (other, m) = list(sizes.items())[:2]
            raise ValueError(f"{other}: {m} for {n} {one}, must be as many; give one entry an example in each")
        if sizes[names[0]] == 0:
            raise ValueError(f"{names[0]}: empty, there must be at least one example; look whether the split is empty")
        self.check_batch(**columns)
        super().add_batch(**columns)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The metric of all that was added, and of what is given here; options by keyword."""
        given = {"predictions": predictions, "references": references}
        given |= {name: kwargs[name] for name in self.features if name in kwargs}
        self._refuse_unused(given)
        if self.writer is None and all(value is None for value in given.values()):
            raise ValueError(
                f"{next(iter(self.features))}: nothing was added, there must be at least one example; give "
                f"{' and '.join(self.features)} to compute, or call add_batch first"
            )
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _refuse_unused(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if name not in self.features and value is not None:
                raise ValueError(f"{name}: {self.name} does not use them; leave them out")

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:  # then no file is written, and the folder need not be there nor be writable
            return os.path.join(self._data_dir_root, self.name, self.config_name)
        return super()._build_data_dir()

    def _enforce_nested_string_type(self, schema: Any, obj: Any) -> None:
        """Nothing: `add_batch` has checked every entry, not the first alone."""


def _plain(value: Any) -> Any:
    """Arrays, tensors and columns as lists of Python's own numbers, at any depth."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(entry) for entry in value]
    return value


def _check_type(feature: Any, value: Any, where: str) -> None:
    if isinstance(feature, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(feature):
            raise ValueError(f"{where}: {_short(value)} must be a dict with the keys {', '.join(feature)}")
        for key, part in feature.items():
            _check_type(part, value[key], f"{where}[{key!r}]")
    elif isinstance(feature, Value):
        _check_value(feature.dtype, value, where)
    else:
        if not isinstance(value, list):
            raise ValueError(
                f"{where}: {_short(value)} must be a list of {_entries(feature.feature)}; put it in a list"
            )
        for index, entry in enumerate(value):
            _check_type(feature.feature, entry, f"{where}[{index}]")


def _check_value(dtype: str, value: Any, where: str) -> None:
    if dtype == "string":
        if not isinstance(value, str):
            raise ValueError(f"{where}: {_short(value)} must be a text; decode tokens first, one text an entry")
    elif dtype.startswith("int"):
        if not isinstance(value, int):
            raise ValueError(f"{where}: {_short(value)} must be an integer; of scores take the argmax first")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: {_short(value)} must be a finite number; look where it was computed")


def _entries(feature: Any) -> str:
    if isinstance(feature, Value):
        return {"string": "texts", "int64": "integers", "float64": "numbers"}[feature.dtype]
    return "lists"


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def check_choice(field: str, value: Any, choices: Sequence) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}: {value!r} must be one of {', '.join(repr(choice) for choice in choices)}")
