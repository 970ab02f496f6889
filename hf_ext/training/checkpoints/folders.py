"""The folders of a run's checkpoints, and the steps by which one comes to be there: each a rename, so that a process may die
at any moment.

    _unfinished-checkpoint-N    being written, or being deleted; the next save or resume removes it
    checkpoint-N                complete: every file is on the disk, and its manifest was written last
    _broken-checkpoint-N        set aside: it no longer verifies
    _later-checkpoint-N         set aside: training went on from an earlier one

Names with an underscore are left out by the Trainer's pushes, and by whatever looks for `checkpoint-*`.
"""

import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

from hf_ext.training.checkpoints.manifest import sync, write_manifest


_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "_unfinished-"


class CheckpointError(OSError):
    """A checkpoint couldn't be written; the message is one line, and the checkpoints before it are as they were."""


def checkpoints_in(run_folder: str | Path) -> list[Path]:
    """A run's checkpoints, by step."""
    run_folder = Path(run_folder)
    there = [p for p in run_folder.iterdir() if _NAME.fullmatch(p.name)] if run_folder.is_dir() else []
    return sorted((p for p in there if p.is_dir()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(_NAME.fullmatch(folder.name)[1])


def begin(final: Path) -> Path:
    """The folder to write into, empty; what an earlier save or deletion left is removed."""
    remove_unfinished(final.parent)
    unfinished = final.with_name(_UNFINISHED + final.name)
    unfinished.mkdir(parents=True)
    return unfinished


def sync_tree(folder: Path) -> None:
    """Have all of a folder on the disk: files first, then the folders that name them."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is deeper comes first
        sync(path)
    sync(folder)


def finish(unfinished: Path, final: Path, step: int, fingerprint: dict[str, dict]) -> None:
    """Give a folder whose files are on the disk its manifest, then its name."""
    write_manifest(unfinished, step, fingerprint)
    if final.exists():  # the same step again: training went on from an earlier one
        remove(final)
    os.rename(unfinished, final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint; half of one never bears its name."""
    doomed = folder.with_name(f"{_UNFINISHED}old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(run_folder: Path) -> None:
    """Delete what was being written or deleted when a process ended."""
    for left in run_folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def rotate(run_folder: Path, save_total_limit: int | None, kept: set[Path]) -> None:
    """Delete the earliest checkpoints beyond `save_total_limit`, but none of `kept`."""
    if not save_total_limit or save_total_limit < 0:
        return
    there, kept = checkpoints_in(run_folder), {folder.resolve() for folder in kept}
    removable = [folder for folder in there if folder.resolve() not in kept]
    for folder in removable[: max(0, len(there) - save_total_limit)]:
        remove(folder)


def set_aside(folder: Path, why: str) -> Path:
    """Rename a checkpoint to `_<why>-checkpoint-N`, with a number behind it where that is taken; nothing is deleted."""
    aside, number = folder.with_name(f"_{why}-{folder.name}"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"_{why}-{folder.name}-{number}")
    os.rename(folder, aside)
    sync(folder.parent)
    return aside


def reason_of_failed_write(error: BaseException) -> str | None:
    """Why the disk didn't take a file, in a few words; None where the error is no such failure.

    The writers of safetensors and torch raise errors of their own, with the system's number in the text or without.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)|code: (\d+)", str(error))
        return os.strerror(int(found[1] or found[2])) if found else str(error)
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container", str(error)):
        return "a file couldn't be written whole"
    return None
