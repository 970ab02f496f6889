"""Where the documents come from: the Hub, local files, or the text that comes with Python."""

import hashlib
from dataclasses import dataclass, field

from datasets import Dataset, IterableDataset
from transformers.utils import logging

from hf_ext.data.files import load_files, load_from_hub, unreadable
from hf_ext.data.python_library import PYTHON_LIBRARY, load_python_library


logger = logging.get_logger(__name__)

SAMPLE_BY = ("document", "line", "paragraph")
HELD_OUT = ("documents", "ends")


@dataclass
class DataArguments:
    """The documents to train and validate on. Exactly one of `dataset_name` and `data_files` is given."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub data set, local data set folder, or python_library for the text that comes with Python."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub data set, for those that have several."}
    )
    # `str` stands second because HfArgumentParser takes the second type of such a union for the command line.
    data_files: dict[str, str | list[str]] | str | list[str] | None = field(
        default=None,
        metadata={"help": "Local json, jsonl, csv, tsv, parquet or txt: a path or glob, a list, or split -> files."},
    )
    column_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the columns of csv or tsv files that have no header line."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the document."})
    sample_by: str = field(
        default="document",
        metadata={"help": "What is a document in a txt file: document (the whole file), paragraph or line."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to validate on; without it validation_fraction is held out."}
    )
    validation_fraction: float = field(
        default=0.05,
        metadata={"help": "Share held out where no split is: of the documents, or of each document's characters."},
    )
    held_out: str = field(
        default="documents",
        metadata={
            "help": "What validation_fraction holds out: documents, chosen by a hash of their text, or ends, the last "
            "characters of every document; for one long text."
        },
    )
    max_train_documents: int | None = field(default=None, metadata={"help": "Train on the first documents only."})
    max_validation_documents: int | None = field(
        default=None, metadata={"help": "Validate on the first documents only."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the documents as they are needed, without a cache."})
    shuffle_buffer_size: int | None = field(
        default=None,
        metadata={"help": "Streaming only: documents among which the next one is drawn; without it the order is kept."},
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "Processes that go through map-style documents; not for streaming."}
    )

    def __post_init__(self):
        if (self.dataset_name is None) == (self.data_files is None):
            given = "both are" if self.dataset_name is not None else "neither is"
            raise ValueError(f"dataset_name, data_files: {given} given; give exactly one of them")
        if self.data_files is not None and not self.data_files:
            raise ValueError(f"data_files: {self.data_files!r} names no file; give a path, a list or a mapping")
        for name in ("dataset_name", "text_column", "train_split"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}: '' is empty; give a name")
        if self.sample_by not in SAMPLE_BY:
            raise ValueError(f"sample_by: '{self.sample_by}' is not one of {', '.join(SAMPLE_BY)}")
        if self.held_out not in HELD_OUT:
            raise ValueError(f"held_out: '{self.held_out}' is not one of {', '.join(HELD_OUT)}")
        if self.held_out != "documents" and self.validation_split is not None:
            raise ValueError(
                f"held_out: '{self.held_out}' has no effect with validation_split '{self.validation_split}'; leave one out"
            )
        # Of a number such as 5e-2 YAML makes a string: it wants 5.0e-2.
        fraction = self.validation_fraction
        if not isinstance(fraction, int | float) or not 0.0 < fraction < 1.0:
            raise ValueError(f"validation_fraction: {fraction!r} must be a number between 0 and 1, both excluded")
        for name in ("max_train_documents", "max_validation_documents", "shuffle_buffer_size", "num_proc"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}: {value!r} must be a whole number from 1, or null")
        if self.validation_split == self.train_split:
            raise ValueError(f"validation_split: '{self.validation_split}' is also train_split; hold out another one")
        self._refuse_unused()

    def _refuse_unused(self):
        """A field that would be ignored is an error: its author expects an effect."""
        if self.shuffle_buffer_size is not None and not self.streaming:
            raise ValueError(
                f"shuffle_buffer_size: {self.shuffle_buffer_size} needs streaming: true; otherwise leave it out, the "
                "trainer shuffles all rows"
            )
        if self.num_proc is not None and self.streaming:
            raise ValueError(f"num_proc: {self.num_proc} has no effect with streaming: true; leave it out")
        if self.data_files is None:
            unused = {"column_names": self.column_names, "sample_by": self.sample_by != "document" or None}
            for name, value in unused.items():
                if value is not None:
                    raise ValueError(f"{name}: {getattr(self, name)!r} is for data_files only; leave it out")
        if self.dataset_config_name is not None and self.dataset_name in (None, PYTHON_LIBRARY):
            raise ValueError(
                f"dataset_config_name: '{self.dataset_config_name}' is for a Hub data set only; leave it out"
            )
        if self.dataset_name == PYTHON_LIBRARY:
            if self.train_split != "train" or self.validation_split is not None:
                raise ValueError(
                    f"train_split, validation_split: '{self.train_split}', {self.validation_split!r}: {PYTHON_LIBRARY} "
                    "has only 'train'; leave both out and set validation_fraction"
                )
        elif isinstance(self.data_files, dict):
            for split in self.data_files:
                if split not in (self.train_split, self.validation_split):
                    raise ValueError(
                        f"data_files: split '{split}' is never read; set train_split or validation_split to it, or "
                        "remove it"
                    )
            for name in ("train_split", "validation_split"):
                split = getattr(self, name)
                if split is not None and split not in self.data_files:
                    raise ValueError(f"{name}: '{split}' is not among the splits {list(self.data_files)} of data_files")
        elif self.data_files is not None and self.validation_split is not None:
            raise ValueError(
                f"validation_split: '{self.validation_split}' needs data_files as a mapping from split to files; write "
                f"{{{self.train_split}: …, {self.validation_split}: …}}"
            )


def load_documents(
    arguments: DataArguments, seed: int
) -> tuple[Dataset, Dataset] | tuple[IterableDataset, IterableDataset]:
    """Return the training and the validation documents, data sets with the one column `text`.

    Documents of white space only are dropped and counted in a log line. Without `validation_split`, a document is held
    out if a hash of its text falls below `validation_fraction`: the choice depends neither on the order nor on the
    seed, so that runs with other seeds are comparable, and two copies of a document fall on one side.
    With `held_out="ends"` every document of n characters is cut instead: the first int(n * (1 - validation_fraction))
    train, the others validate. Of two documents with the same ending, one then trains on what the other validates on.

    Args:
        seed: order of a shuffled stream (`shuffle_buffer_size`); nothing else here is random.

    Raises:
        FileNotFoundError: a file, a pattern without a match, or a Hub data set that cannot be reached.
        ValueError: files that cannot be read, a missing column, or no documents on either side.
    """
    if arguments.data_files is not None:
        raw = load_files(arguments)
    elif arguments.dataset_name == PYTHON_LIBRARY:
        raw = {arguments.train_split: load_python_library(streaming=arguments.streaming)}
    else:
        raw = load_from_hub(arguments)

    splits = {split: _keep_text(dataset, split, arguments) for split, dataset in raw.items()}
    if arguments.validation_split is not None:
        train, validation = splits[arguments.train_split], splits[arguments.validation_split]
    elif arguments.held_out == "ends":
        train, validation = (
            _map(splits[arguments.train_split], _cut, arguments, end=end, fraction=arguments.validation_fraction)
            for end in (False, True)
        )
    else:
        train, validation = (
            _filter(
                splits[arguments.train_split],
                _is_on_side,
                arguments,
                held_out=held_out,
                fraction=arguments.validation_fraction,
            )
            for held_out in (False, True)
        )
    train = _finish(train, "train", arguments.max_train_documents, arguments)
    validation = _finish(validation, "validation", arguments.max_validation_documents, arguments)
    if arguments.shuffle_buffer_size is not None:
        train = train.shuffle(seed=seed, buffer_size=arguments.shuffle_buffer_size)
    return train, validation


def _keep_text(dataset: Dataset | IterableDataset, split: str, arguments: DataArguments) -> Dataset | IterableDataset:
    """Only the text column, under the name `text`, after a look at its name and type."""
    column, values = arguments.text_column, None
    columns = dataset.column_names
    if isinstance(dataset, IterableDataset):
        example = _first_document(dataset, arguments)
        if example is None:
            raise ValueError(f"{_source(arguments)}: split '{split}' has no documents; give at least one")
        columns, values = list(example), example.get(column)
    if column not in columns:
        raise ValueError(
            f"text_column: '{column}' is not among the columns {columns} of split '{split}'; name one of them"
        )
    held = dataset.features[column] if dataset.features is not None else None
    dtype = getattr(held, "dtype", None) or type(held or values).__name__
    is_text = dtype in ("string", "large_string", "str") or (held is None and values is None)
    if not is_text:
        raise ValueError(
            f"text_column: '{column}' of split '{split}' holds {dtype}, not text; name a column of strings"
        )
    dataset = dataset.select_columns([column])
    return dataset if column == "text" else dataset.rename_column(column, "text")


def _filter(dataset, condition, arguments: DataArguments, **settings) -> Dataset | IterableDataset:
    shared = {"input_columns": ["text"], "fn_kwargs": settings}
    if isinstance(dataset, IterableDataset):
        return dataset.filter(condition, **shared)
    return dataset.filter(condition, num_proc=arguments.num_proc, **shared)


def _map(dataset, change, arguments: DataArguments, **settings) -> Dataset | IterableDataset:
    shared = {"input_columns": ["text"], "fn_kwargs": settings}
    if isinstance(dataset, IterableDataset):
        return dataset.map(change, **shared)
    return dataset.map(change, num_proc=arguments.num_proc, **shared)


def _cut(text: str | None, end: bool, fraction: float) -> dict[str, str]:
    text = text or ""
    border = int(len(text) * (1 - fraction))
    return {"text": text[border:] if end else text[:border]}


def _is_on_side(text: str | None, held_out: bool, fraction: float) -> bool:
    digest = hashlib.blake2b((text or "").encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") < fraction * 2**64) == held_out


def _has_text(text: str | None) -> bool:
    return text is not None and not text.isspace() and text != ""


class _DropBlank:
    """`_has_text` for a stream: the end of a pass is not seen, so the count is logged at 1, 10, 100, … documents."""

    def __init__(self, name: str):
        self.name = name
        self.num_dropped = 0
        self.quiet = False

    def __call__(self, text: str | None) -> bool:
        if _has_text(text):
            return True
        if not self.quiet:
            self.num_dropped += 1
            if set(str(self.num_dropped)[1:]) <= {"0"} and str(self.num_dropped)[0] == "1":
                logger.warning(f"{self.name}: {self.num_dropped} documents of white space only dropped so far")
        return False


def _finish(
    dataset: Dataset | IterableDataset, name: str, max_documents: int | None, arguments: DataArguments
) -> Dataset | IterableDataset:
    """Drop blank documents, keep the first `max_documents`, and see that something is left."""
    if isinstance(dataset, IterableDataset):
        condition = _DropBlank(name)
        dataset = dataset.filter(condition, input_columns=["text"])
        condition.quiet = True
        is_empty = _first_document(dataset, arguments) is None
        condition.quiet = False
        if max_documents is not None:
            dataset = dataset.take(max_documents)
    else:
        num_before = len(dataset)
        dataset = _filter(dataset, _has_text, arguments)
        if len(dataset) < num_before:
            logger.warning(f"{name}: {num_before - len(dataset)} documents of white space only dropped")
        is_empty = len(dataset) == 0
        if max_documents is not None:
            dataset = dataset.select(range(min(max_documents, len(dataset))))
    if is_empty:
        raise ValueError(_nothing_left(name, arguments))
    return dataset


def _nothing_left(name: str, arguments: DataArguments) -> str:
    line = f"{_source(arguments)}: no documents for {name}: all are white space"
    if arguments.validation_split is not None:
        return f"{line}; give text"
    return (
        f"{line}, or too few for validation_fraction {arguments.validation_fraction} to leave both sides some; give "
        "more or smaller documents (sample_by: paragraph), another fraction, a validation_split, or held_out: ends"
    )


def _source(arguments: DataArguments) -> str:
    return "dataset_name" if arguments.data_files is None else "data_files"


def _first_document(dataset: IterableDataset, arguments: DataArguments) -> dict | None:
    try:
        return next(iter(dataset), None)
    except ValueError as error:
        raise unreadable(arguments, error) from error
