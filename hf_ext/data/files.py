"""Files and Hub data sets as splits: what is wrong with them is one line, before anything is trained.

The arguments are those of `DataArguments` (documents) or `RowArguments` (rows of columns).
"""

import codecs
import difflib
import glob
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from transformers.utils import logging

from hf_ext.data.python_library import PYTHON_LIBRARY


logger = logging.get_logger(__name__)

# Format of a file name's ending -> loader of `datasets` and its options.
_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "text"}
_LOADERS = {"json": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet", "text": "text"}
# Empty cells stay empty text, and a document "NA" stays itself. A tsv has no quoting: a quotation mark is text.
_LOADER_OPTIONS = {"csv": {"keep_default_na": False}, "tsv": {"keep_default_na": False, "sep": "\t", "quoting": 3}}
# A stream may be larger than what can be read before step 1; of each of its files this much is checked to be UTF-8.
_STREAMING_CHECK_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20


def resolve_data_files(arguments, file_format: str | None = None) -> dict[str, list[str]]:
    """Files of each split, sorted within a pattern; every check that needs no loader is made here.

    Args:
        file_format: what the files are, whatever their names end in; default: what these say.

    Raises:
        FileNotFoundError: a path or pattern without a file.
        ValueError: an unknown or mixed format, only empty files, or text that is not UTF-8 (with its line and byte offset).
    """
    per_split = arguments.data_files
    if not isinstance(per_split, dict):
        per_split = {arguments.train_split: per_split}
    files = {}
    for split, patterns in per_split.items():
        patterns = [patterns] if isinstance(patterns, str) else list(patterns or [])
        if not patterns:
            raise ValueError(f"data_files: split '{split}' names no file; give it one or remove it")
        files[split] = list(dict.fromkeys(path for pattern in patterns for path in matching_files(str(pattern))))

    file_format = file_format or common_format(files)
    if arguments.column_names is not None and file_format not in ("csv", "tsv"):
        raise ValueError(f"column_names: {arguments.column_names} is for csv and tsv files, these are {file_format}")
    if arguments.sample_by != "document" and file_format != "text":
        raise ValueError(f"sample_by: '{arguments.sample_by}' is for txt files, these are {file_format}; leave it out")
    for split, paths in files.items():
        not_empty = [path for path in paths if Path(path).stat().st_size > 0]
        if not not_empty:
            raise ValueError(f"data_files: {_shorten(paths)} of split '{split}' is empty; give files with documents")
        if len(not_empty) < len(paths):
            logger.warning(f"data_files: {len(paths) - len(not_empty)} empty files of split '{split}' left out")
        files[split] = not_empty
        if file_format != "parquet":
            for path in not_empty:
                _check_utf8(path, _STREAMING_CHECK_BYTES if arguments.streaming else None)
    return files


def matching_files(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted.

    Raises:
        FileNotFoundError: none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        raise FileNotFoundError(f"data_files: '{pattern}' is a folder; name its files, such as '{pattern}/*.txt'")
    matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not matches:
        problem = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise FileNotFoundError(f"data_files: '{pattern}' {problem}; paths are local and relative to {Path.cwd()}")
    return matches


def common_format(files: dict[str, list[str]]) -> str:
    formats = {}
    for path in (path for paths in files.values() for path in paths):
        suffix = Path(path).suffix.lower()
        if suffix not in _FORMATS:
            raise ValueError(f"data_files: '{path}' ends in '{suffix}', known are {', '.join(_FORMATS)}; convert it")
        formats.setdefault(_FORMATS[suffix], path)
    if len(formats) > 1:
        examples = ", ".join(f"{file_format} ('{path}')" for file_format, path in formats.items())
        raise ValueError(f"data_files: formats are mixed: {examples}; one data set has one format, convert the others")
    return next(iter(formats))


def _check_utf8(path: str, max_bytes: int | None) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, lines = 0, 0
    with open(path, "rb") as file:
        while max_bytes is None or offset < max_bytes:
            block = file.read(_BLOCK_BYTES)
            # An incomplete character is held back for the next block, so positions count from where it begins.
            held_back = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                start = error.start - held_back  # in this block
                line = lines + block[: max(start, 0)].count(b"\n") + 1
                raise ValueError(
                    f"data_files: '{path}' is not UTF-8 in line {line}, at byte {offset + start} ({error.reason}); "
                    "convert it to UTF-8"
                ) from None
            if not block:
                return
            offset += len(block)
            lines += block.count(b"\n")


def _shorten(paths: list[str]) -> str:
    return f"'{paths[0]}'" if len(paths) == 1 else f"'{paths[0]}' and {len(paths) - 1} more"


def load_files(arguments) -> dict[str, Dataset | IterableDataset]:
    files = resolve_data_files(arguments)
    file_format = common_format(files)
    options = dict(_LOADER_OPTIONS.get(file_format, {}))
    if file_format == "text":
        options["sample_by"] = arguments.sample_by
    if getattr(arguments, "json_field", None) is not None:
        options["field"] = arguments.json_field
    if arguments.column_names is not None:
        options |= {"column_names": arguments.column_names, "header": None}
    try:
        # One split at a time: together they would have to have the same columns, though a test set may have more. And
        # escaped, since the loader takes every name for a pattern.
        return {
            split: load_dataset(
                _LOADERS[file_format],
                data_files={split: [glob.escape(path) for path in paths]},
                split=split,
                streaming=arguments.streaming,
                **options,
            )
            for split, paths in files.items()
        }
    except (DatasetGenerationError, ValueError) as error:
        raise unreadable(arguments, error) from error


def unreadable(arguments, error: BaseException) -> ValueError:
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ is not None else error
    source = "dataset_name" if arguments.data_files is None else "data_files"
    return ValueError(
        f"{source}: {getattr(arguments, source)!r} could not be read: {first_line(cause)}; check the files' content"
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_from_hub(arguments) -> dict[str, Dataset | IterableDataset]:
    name, config = arguments.dataset_name, arguments.dataset_config_name
    splits = (arguments.train_split, arguments.validation_split, getattr(arguments, "test_split", None))
    wanted = [split for split in splits if split is not None]
    try:
        return {split: load_dataset(name, config, split=split, streaming=arguments.streaming) for split in wanted}
    except (ConnectionError, DatasetNotFoundError) as error:
        hint = f"; did you mean '{PYTHON_LIBRARY}'?" if difflib.get_close_matches(name, [PYTHON_LIBRARY]) else ""
        raise FileNotFoundError(
            f"dataset_name: '{name}' is neither in the cache nor found on the Hub ({first_line(error)}){hint}; check "
            "the name and the connection (HF_HUB_OFFLINE unset), download it beforehand, or give data_files"
        ) from error
    except (DatasetGenerationError, ValueError) as error:
        cause = first_line(error.__cause__ if isinstance(error, DatasetGenerationError) else error)
        raise ValueError(
            f"dataset_name: '{name}' (configuration {config!r}, splits {wanted}) could not be loaded: {cause}; check "
            "dataset_config_name, train_split and validation_split"
        ) from error
