"""A repository of the Hub as a folder: one commit of it, verified, and there as a whole or not at all.

pulled = pull("me/quickstart", "quickstart", revision="v1")     # pulled.commit: which one that was
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_ext.hub.file_names import RESERVED_FOLDERS, check_name, check_no_pickle, matches, pickles_among, several
from hf_ext.hub.repository import HubError, HubRepository, RemoteFile
from hf_ext.training.checkpoints.folders import sync_tree


# the Hub's own file, which says what lies apart there
LEFT_THERE = (".gitattributes",)


@dataclass(frozen=True)
class PulledFolder:
    """folder: where the files are. commit: whose they are, 40 hexadecimal digits. num_bytes: of all files together."""

    folder: Path
    commit: str
    num_files: int
    num_bytes: int


def pull(
    repo_id: str,
    folder: str | Path,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    leave_out: Iterable[str] = LEFT_THERE,
    token: str | None = None,
    endpoint: str | None = None,
    tell: Callable[[str], None] = print,
) -> PulledFolder:
    """Download one commit into a folder that isn't there yet, or is empty, or is this commit already.

    The files are written beside the folder, compared with the Hub's sizes and hashes, and get the folder's name last. A
    download that died is gone on with by the next call.

    Args:
        repo_id: "owner/name". folder: where to; its parents are made. repo_type: "model" or "dataset".
        revision: a branch, tag or commit; default the branch main. leave_out: patterns of files that stay there.
        token, endpoint: see `HubRepository`. tell: takes the lines about what is pulled.

    Raises:
        ValueError: no such revision; names that lead out of the folder; pickles; or the folder holds something else.
        HubError: the Hub refused, couldn't be reached, or sent something else than it said.
    """
    folder, leave_out = Path(os.path.abspath(folder)), several("leave_out", leave_out)
    repository = HubRepository(repo_id, repo_type, token=token, endpoint=endpoint)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={folder.name!r}: is a file; choose another name")
    commit = repository.find(revision)
    if commit is None:
        raise ValueError(f"revision={revision!r}: {repo_id} has no such branch, tag or commit")
    files = {name: file for name, file in repository.files(commit).items() if not matches(name, leave_out)}
    _check_names(repo_id, files)
    num_bytes = sum(file.size for file in files.values())
    pulled = PulledFolder(folder, commit, len(files), num_bytes)
    line = f"{repo_id} ({revision or 'main'}, commit {commit}): {len(files)} files, {num_bytes:,} bytes"
    if folder.is_dir() and any(folder.iterdir()):
        _check_same(folder, repo_id, commit, files)
        tell(f"{line}; they are in {folder.name} already")
        return pulled
    tell(line)
    unfinished = _beside(folder, repository, commit)
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, file in sorted(files.items()):
        _download(repository, name, file, commit, unfinished)
    for reserved in RESERVED_FOLDERS:  # the client's notes on what it has downloaded
        shutil.rmtree(unfinished / reserved, ignore_errors=True)
    for name in _names_in(unfinished).keys() - files.keys():  # of an earlier call that left out less
        (unfinished / name).unlink()
    try:
        check_no_pickle(unfinished, files)
    except ValueError:
        shutil.rmtree(unfinished)
        raise
    sync_tree(unfinished)
    os.replace(unfinished, folder)
    return pulled


def _check_names(repo_id: str, files: dict[str, RemoteFile]) -> None:
    if not files:
        raise ValueError(f"{repo_id}: holds no file to pull")
    for name in files:
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"{repo_id}: holds {error}; nothing was written") from None
    folders = {name.lower().rpartition("/")[0] for name in files}
    if len({name.lower() for name in files}) < len(files) or folders & {name.lower() for name in files}:
        raise ValueError(f"{repo_id}: two of its files have one name but for upper case; leave one out")
    if pickles := pickles_among(files):
        raise ValueError(
            f"{repo_id}: {', '.join(pickles)}: pickles run what they say when they are loaded and aren't pulled; take a "
            "revision with safetensors, or leave them out: leave_out=('*.bin',)"
        )


def _beside(folder: Path, repository: HubRepository, commit: str) -> Path:
    """The unfinished folder's name: that of this repository and commit, so that another's is never gone on with."""
    what = f"{repository.api.endpoint} {repository.repo_type} {repository.repo_id} {commit}"
    return folder.parent / f".{folder.name}.pulling-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _download(repository: HubRepository, name: str, file: RemoteFile, commit: str, unfinished: Path) -> None:
    path = unfinished / name
    for again in (False, True):
        with repository.asking(f"{name} can't be downloaded"):
            repository.api.hf_hub_download(
                repository.repo_id,
                name,
                repo_type=repository.repo_type,
                revision=commit,
                local_dir=unfinished,
                force_download=again,  # what an earlier call left may be broken
            )
        if not path.is_symlink() and path.is_file() and file.is_same_as(path):
            return
    path.unlink(missing_ok=True)
    raise HubError(
        f"{repository.repo_id}: {name} isn't what the Hub says of it (size or hash differ); pull again, and if it stays so, "
        "the file there is broken"
    )


def _check_same(folder: Path, repo_id: str, commit: str, files: dict[str, RemoteFile]) -> None:
    """Raises ValueError for a folder that isn't this commit, file by file."""
    there = _names_in(folder)
    for name in sorted(there.keys() | files.keys()):
        if (
            name not in files
            or name not in there
            or there[name].is_symlink()
            or not files[name].is_same_as(there[name])
        ):
            how = "isn't of it" if name not in files else "is missing" if name not in there else "differs"
            raise ValueError(
                f"folder={folder.name!r}: is there and isn't {repo_id} at {commit[:12]} ({name} {how}); choose another, or "
                "delete it"
            )


def _names_in(folder: Path) -> dict[str, Path]:
    """name -> path of every file and link."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
