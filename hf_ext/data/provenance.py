"""Which data a run read, for others to tell whether theirs are the same: files by SHA-256, the Hub's by revision."""

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset_builder

from hf_ext.data.files import matching_files
from hf_ext.data.python_library import PYTHON_LIBRARY, python_library_fingerprint


@dataclass(frozen=True)
class DataSource:
    """A file, or a data set as one.

    Attributes:
        name: of the file and its folder, or of the data set. split: the data's name of it; "" where there is none.
        num_bytes: of the file; None for what isn't one file.
        identity: "sha256 …", or "revision …" of a data set on the Hub.
    """

    name: str
    split: str
    num_bytes: int | None
    identity: str


def data_sources(arguments) -> list[DataSource]:
    """What a `DataArguments` or `RowArguments` reads.

    Raises:
        FileNotFoundError: a file that isn't there any more.
    """
    if arguments.data_files is not None:
        return [_of_file(path, split) for split, path in _files(arguments.data_files, "")]
    if arguments.dataset_name == PYTHON_LIBRARY:
        name = f"{PYTHON_LIBRARY} of Python {platform.python_version()}"
        return [DataSource(name, "", None, f"sha256 {python_library_fingerprint()}")]
    folder = Path(arguments.dataset_name)
    if folder.is_dir():
        return [_of_file(str(path), "") for path in sorted(folder.rglob("*")) if path.is_file()]
    builder = load_dataset_builder(arguments.dataset_name, arguments.dataset_config_name)
    config = f", {arguments.dataset_config_name}" if arguments.dataset_config_name else ""
    return [DataSource(f"{arguments.dataset_name}{config}", "", None, f"revision {builder.hash}")]


def name_of_file(path: str | Path) -> str:
    """Of a file and its folder, unless that is somebody's home: it says which file, and not where on this machine."""
    parts = Path(path).parts[-2:]
    is_home = Path(path).expanduser().resolve().parent == Path.home().resolve()
    return parts[-1] if is_home or parts[0] in (Path(path).anchor, "..", "~") else "/".join(parts)


def _files(named, split: str) -> Iterator[tuple[str, str]]:
    """(split, file) of `data_files`: a pattern, a list, or a mapping from splits to these or to {column: file}."""
    if isinstance(named, dict):
        for name, inner in named.items():
            yield from _files(inner, split or name)
    elif isinstance(named, str):
        for path in matching_files(named):
            yield split, path
    else:
        for pattern in named:
            yield from _files(pattern, split)


def _of_file(path: str, split: str) -> DataSource:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DataSource(name_of_file(path), split, Path(path).stat().st_size, f"sha256 {digest}")
