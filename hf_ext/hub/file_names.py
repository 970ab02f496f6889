"""Names of files that may come from or go to a repository: inside its folder, and not loaded through pickle."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath


# what torch, joblib and their like unpickle, which runs what the file says
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.dill")
# the client keeps its own notes there, git its own
RESERVED_FOLDERS = (".git", ".cache")


def check_name(name: str) -> None:
    """Raises ValueError for a name that leads out of the folder, that not every system can have, or that is reserved."""
    parts = name.split("/")
    if (
        not name
        or re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', name)
        or any(part in ("", ".", "..") or part != part.rstrip(" .") for part in parts)
    ):
        raise ValueError(
            f"{name!r}: no safe name for a file; a relative path of plain words is, such as data/train.json"
        )
    if any(part.lower() in RESERVED_FOLDERS for part in parts):
        raise ValueError(f"{name!r}: {' and '.join(RESERVED_FOLDERS)} aren't part of a repository; leave it out")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern such as `*.log` or `checkpoint-*/*` is that of the name, or of its last part."""
    last = PurePosixPath(name).name
    return any(fnmatchcase(name, pattern) or fnmatchcase(last, pattern) for pattern in patterns)


def several(name: str, given: Iterable[str]) -> tuple[str, ...]:
    """An argument that takes several texts; ValueError for one text, whose letters it would be taken for."""
    if isinstance(given, str):
        raise ValueError(f"{name}={given!r}: takes several; write ({given!r},)")
    return tuple(given)


def pickles_among(names: Iterable[str]) -> list[str]:
    """Those that are unpickled when they are loaded; OpenVINO's `model.bin` beside `model.xml` is plain numbers."""
    names = set(names)
    return sorted(
        name
        for name in names
        if matches(name.lower(), PICKLES)
        and not (name.endswith(".bin") and name.removesuffix(".bin") + ".xml" in names)
    )


def check_no_pickle(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError for a file that torch's or Python's pickle wrote, whatever its name: *.bin beside an .xml."""
    for name in names:
        if name.endswith(".bin"):
            with (folder / name).open("rb") as file:
                head = file.read(4)
            if head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
                raise ValueError(f"{name}: is a pickle, which runs what it says when it is loaded; save as safetensors")
