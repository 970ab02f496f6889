"""Rows of named columns, such as a text and its label, for the tasks that have inputs and answers."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets, load_dataset
from transformers.utils import logging

from hf_ext.data.files import load_files, load_from_hub, resolve_data_files
from hf_ext.data.python_library import PYTHON_LIBRARY, load_python_library
from hf_ext.models.configuration_choices import check_known, nearest


logger = logging.get_logger(__name__)
SPLITS = ("train", "validation", "test")


@dataclass
class RowArguments:
    """The rows to train, validate and test on. Exactly one of `dataset_name` and `data_files` is given."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": f"Hub data set, local data set folder, or {PYTHON_LIBRARY}: texts that every machine has."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub data set, for those that have several."}
    )
    data_files: dict | str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Local json, jsonl, csv, tsv or parquet: a path or glob, a list, or split -> files; or split -> "
            "{column: text file} for texts that run in parallel, a row a line."
        },
    )
    column_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the columns of csv or tsv files that have no header line."}
    )
    json_field: str | None = field(
        default=None, metadata={"help": "Of json files that are one object: the key that holds the rows."}
    )
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "The task's name of a column -> its name in the data, where they differ."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to validate on; without it validation_fraction is held out."}
    )
    test_split: str | None = field(default=None, metadata={"help": "Split for the final scores; default none."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share of the training rows held out where no split is. Default: 0.1."}
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column whose value keeps rows together when some are held out: those of one value fall on one side. "
            "Default: the task's, where it has one."
        },
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    max_validation_rows: int | None = field(default=None, metadata={"help": "Validate on the first rows only."})
    max_test_rows: int | None = field(default=None, metadata={"help": "Test on the first rows only."})

    # what reading files asks of `DataArguments` too
    sample_by = "document"
    streaming = False

    def __post_init__(self):
        if (self.dataset_name is None) == (self.data_files is None):
            given = "both are" if self.dataset_name is not None else "neither is"
            raise ValueError(f"data.dataset_name, data.data_files: {given} given; give exactly one of them")
        if self.data_files is not None and not self.data_files:
            raise ValueError(f"data.data_files: {self.data_files!r} names no file; give a path, a list or a mapping")
        fraction = self.validation_fraction
        if fraction is not None and not 0.0 < fraction < 1.0:
            raise ValueError(f"data.validation_fraction: {fraction!r} must be between 0 and 1, both excluded")
        if fraction is not None and self.validation_split is not None:
            raise ValueError(
                f"data.validation_fraction: {fraction} has no effect with validation_split "
                f"{self.validation_split!r}; leave one out"
            )
        if self.group_column is not None and self.validation_split is not None:
            raise ValueError(
                f"data.group_column: {self.group_column!r} has no effect with validation_split "
                f"{self.validation_split!r}; leave one out"
            )
        for name in ("max_train_rows", "max_validation_rows", "max_test_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}: {value!r} must be a whole number from 1, or null")
        if self.max_test_rows is not None and self.test_split is None:
            raise ValueError(f"data.max_test_rows: {self.max_test_rows} has no effect without test_split; leave it out")
        splits = [split for split in self.splits.values() if split is not None]
        for split in splits:
            if splits.count(split) > 1:
                raise ValueError(f"data: split {split!r} is named twice; train, validation and test need one each")
        if self.dataset_name == PYTHON_LIBRARY:
            only_value = {
                "train_split": "train",
                "validation_split": None,
                "test_split": None,
                "dataset_config_name": None,
            }
            for name, only in only_value.items():
                if getattr(self, name) != only:
                    raise ValueError(
                        f"data.{name}: {getattr(self, name)!r}: {PYTHON_LIBRARY} has the one split 'train' and no "
                        "configurations; leave it out"
                    )
        if self.data_files is None:
            for name in ("column_names", "json_field"):
                if getattr(self, name) is not None:
                    raise ValueError(f"data.{name}: {getattr(self, name)!r} is for data_files only; leave it out")
        elif not isinstance(self.data_files, dict):
            for name in ("validation_split", "test_split"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"data.{name}: {getattr(self, name)!r} needs data_files as a mapping from split to files"
                    )
        else:
            check_known("data.data_files", self.data_files, splits)
            for split in splits:
                if split not in self.data_files:
                    raise ValueError(f"data.data_files: has no split {split!r}, only {', '.join(self.data_files)}")
            kinds = {isinstance(files, dict) for files in self.data_files.values()}
            if len(kinds) > 1:
                raise ValueError("data.data_files: some splits map columns to files and some don't; write all one way")
            if True in kinds:
                for name in ("column_names", "json_field"):
                    if getattr(self, name) is not None:
                        raise ValueError(f"data.{name}: has no effect where data_files name each column's file")

    @property
    def splits(self) -> dict[str, str | None]:
        """Our name of a split -> the data's."""
        return {name: getattr(self, f"{name}_split") for name in SPLITS}

    @property
    def has_parallel_files(self) -> bool:
        """Whether the splits map columns to text files."""
        return isinstance(self.data_files, dict) and isinstance(next(iter(self.data_files.values())), dict)


def load_rows(
    arguments: RowArguments,
    columns: Sequence[str] | None,
    optional: Sequence[str] = (),
    *,
    unfold: Callable[[Dataset], Dataset] | None = None,
    group: str | None = None,
) -> dict[str, Dataset]:
    """The splits "train", "validation" and, where it is asked for, "test", each with the task's columns under their names.

    Without `validation_split`, a row is held out if a hash of it falls below `validation_fraction`: the choice depends on
    neither order nor seed, and two copies of a row fall on one side; so do all rows of one value of `group_column`.

    Args:
        columns: the task's names of the columns that must be there; None: all columns as they are.
        optional: those that may be there.
        unfold: makes the task's rows of what was read, before anything else is done with them.
        group: the task's `group_column` where the arguments have none.

    Raises:
        FileNotFoundError: a file, or a Hub data set that can't be reached.
        ValueError: files that can't be read, a missing column, or a split without rows.
    """
    if columns is not None:
        check_known("data.columns", arguments.columns, [*columns, *optional])
    if arguments.dataset_name == PYTHON_LIBRARY:
        raw = {"train": load_python_library()}
    elif arguments.data_files is None:
        raw = load_from_hub(arguments)
    elif arguments.has_parallel_files:
        raw = {split: _load_parallel(arguments, split, files) for split, files in arguments.data_files.items()}
    else:
        raw = load_files(arguments)
    if unfold is not None:
        raw = {split: unfold(rows) for split, rows in raw.items()}
    found = {name: raw[split] for name, split in arguments.splits.items() if split is not None}
    found = {name: _rename(rows, name, arguments, columns, optional) for name, rows in found.items()}
    if arguments.validation_split is None:
        fraction = 0.1 if arguments.validation_fraction is None else arguments.validation_fraction
        group = arguments.group_column or group
        if group is not None and group not in found["train"].column_names:
            raise ValueError(
                f"data.group_column: {group!r} is not among the columns {found['train'].column_names} of train"
                f"{nearest(group, found['train'].column_names)}"
            )
        sides = {
            name: found["train"].filter(
                _is_on_side, fn_kwargs={"held_out": held_out, "fraction": fraction, "group": group}
            )
            for name, held_out in (("train", False), ("validation", True))
        }
        found |= sides
    for name, rows in found.items():
        limit = getattr(arguments, f"max_{name}_rows")
        if limit is not None:
            found[name] = rows.select(range(min(limit, len(rows))))
        if len(rows) == 0:
            hint = "; give more rows or another validation_fraction" if arguments.validation_split is None else ""
            raise ValueError(f"data: no rows for {name}{hint}")
    return {name: found[name] for name in SPLITS if name in found}


def _load_parallel(arguments: RowArguments, split: str, files: dict[str, str]) -> Dataset:
    sides = {}
    for column, path in files.items():
        if not isinstance(path, str):
            raise ValueError(f"data.data_files: {split}.{column}={path!r} must be the path of a text file")
        asked = copy.copy(arguments)
        asked.data_files = {split: path}
        resolve_data_files(asked, file_format="text")
        loaded = load_dataset("text", data_files={split: path}, split=split)
        sides[column] = loaded.rename_column("text", column)
    lengths = {column: len(side) for column, side in sides.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"data.data_files: the texts of {split!r} have {lengths} lines; they must run in parallel")
    return concatenate_datasets(list(sides.values()), axis=1)


def _rename(rows: Dataset, split: str, arguments: RowArguments, columns, optional) -> Dataset:
    if columns is None:
        return rows
    present, kept = rows.column_names, {}
    for name in (*columns, *optional):
        source = arguments.columns.get(name, name)
        if source in present:
            kept[source] = name
        elif name in columns or name in arguments.columns:
            raise ValueError(
                f"data.columns: {source!r} (the task's {name!r}) is not among the columns {present} of {split}"
                f"{nearest(source, present)}; map it: data.columns: {{{name}: …}}"
            )
    rows = rows.select_columns(list(kept))
    return rows.rename_columns({source: name for source, name in kept.items() if source != name})


def _is_on_side(row: dict, held_out: bool, fraction: float, group: str | None) -> bool:
    key = sorted(row.items()) if group is None else row[group]
    digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") < fraction * 2**64) == held_out
