"""Real text that every machine has: the sources and the language reference of the running Python's standard library.

About 10 MB on CPython 3.11, read from the disk, never from a network. The text is the Python Software Foundation's,
under the PSF licence; a model trained on it carries that notice in its card.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Features, IterableDataset, Value
from transformers.utils import logging


logger = logging.get_logger(__name__)

PYTHON_LIBRARY = "python_library"
PYTHON_LIBRARY_LICENSE = "PSF-2.0"

# Test suites, what is not the library's own, and the code pages in `encodings`, which are generated tables.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "__pycache__"}
# What describes this machine and not the library.
_SKIPPED_FILES = {"sitecustomize.py", "usercustomize.py"}
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
_TOPICS_FILE = "pydoc_data/topics.py"


def iter_python_library(*, max_bytes: int | None = None) -> Iterator[dict[str, str]]:
    """Yield `{"text", "path"}` for each module source and each topic of the language reference.

    The order is that of the paths' SHA-256: fixed, and a prefix is a fair sample of the library rather than the
    modules whose names begin with `a`. `path` is relative to the library. A source that is not UTF-8 is left out.

    Args:
        max_bytes: stop before the document that would bring the UTF-8 bytes of all texts above this number.

    Raises:
        ValueError: `max_bytes` below 1, or too small for the first document.
        FileNotFoundError: this Python has no library sources as files.
    """
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes: {max_bytes} must be at least 1 byte, or None for the whole library")
    return _read_documents(_library_folder(), max_bytes)


def load_python_library(*, streaming: bool = False) -> Dataset | IterableDataset:
    """What `iter_python_library` yields as a data set, with the columns `text` and `path`."""
    features = Features({"text": Value("string"), "path": Value("string")})
    iter_python_library()  # raises at once where there is none
    if streaming:
        return IterableDataset.from_generator(iter_python_library, features=features)
    # The generator's own hash would not see that another Python has another library.
    return Dataset.from_generator(iter_python_library, features=features, fingerprint=python_library_fingerprint()[:32])


def python_library_fingerprint() -> str:
    """SHA-256 of every path and text that `iter_python_library` yields: it names the cache of the embedded text."""
    digest = hashlib.sha256()
    for document in iter_python_library():
        for field in (document["path"], document["text"]):
            data = field.encode("utf-8")
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _library_folder() -> Path:
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "argparse.py").is_file():
        raise FileNotFoundError(
            f"dataset_name: '{PYTHON_LIBRARY}' needs the standard library's .py files, and this Python has none in its "
            "library folder (zipped or stripped); use a full CPython, or give data_files"
        )
    return folder


def _read_documents(folder: Path, max_bytes: int | None) -> Iterator[dict[str, str]]:
    topics = _read_topics()
    paths = {*topics, *_source_paths(folder)}
    total_bytes = 0
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.encode("utf-8")).digest()):
        text = topics[path] if path in topics else _read_source(folder / path)
        if text is None:
            continue
        num_bytes = len(text.encode("utf-8"))
        if max_bytes is not None and total_bytes + num_bytes > max_bytes:
            if total_bytes == 0:
                raise ValueError(f"max_bytes: {max_bytes} is below the first document's {num_bytes} bytes; raise it")
            return
        total_bytes += num_bytes
        yield {"text": text, "path": path}


def _source_paths(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        path = file.relative_to(folder)
        if _SKIPPED_FOLDERS.intersection(path.parts[:-1]) or path.name in _SKIPPED_FILES:
            continue
        if any(part.startswith(_SKIPPED_PREFIXES) for part in path.parts) or path.as_posix() == _TOPICS_FILE:
            continue
        yield path.as_posix()


def _read_source(file: Path) -> str | None:
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _read_topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        logger.warning(f"dataset_name: '{PYTHON_LIBRARY}': this Python has no pydoc_data, its sources alone are used")
        return {}
    return {f"pydoc_data/topics/{name}.txt": text for name, text in topics.items()}
