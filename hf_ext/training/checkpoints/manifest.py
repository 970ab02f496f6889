"""What a checkpoint's folder holds, written into it last: size and sha256 of every file, and the run that it belongs to.

manifest.json: {"format", "step", "files": {path: {"size", "sha256"}}, "fingerprint", "sha256"}, the last of all the others.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
# hashlib lets other threads run while it reads: files are read side by side
NUM_READERS = 4
# folder -> sizes and times of the files that verified in this process: a checkpoint is asked about more than once
_verified: dict[str, tuple] = {}


class BrokenCheckpointError(ValueError):
    """A folder that isn't what was saved; the message is one line: the checkpoint, the file, what is wrong."""


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    step: optimizer steps behind the checkpoint.
    files: path below the folder -> {"size": bytes, "sha256": hex}.
    fingerprint: the run, as `fingerprint.run_fingerprint` gives it.
    """

    step: int
    files: dict[str, dict]
    fingerprint: dict[str, dict]

    @property
    def num_bytes(self) -> int:
        """Of all files together, the manifest excepted."""
        return sum(entry["size"] for entry in self.files.values())


def write_manifest(folder: Path, step: int, fingerprint: dict[str, dict]) -> Manifest:
    """Describe the files that are in `folder` now; the manifest is there whole, and on the disk, or not at all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST_NAME]
    with ThreadPoolExecutor(NUM_READERS) as readers:
        digests = list(readers.map(lambda name: file_sha256(folder / name), names))
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    content = {"format": MANIFEST_FORMAT, "step": step, "files": files, "fingerprint": fingerprint}
    text = json.dumps({**content, "sha256": _content_sha256(content)}, indent=1, ensure_ascii=False)
    write_durably(folder / MANIFEST_NAME, text)
    return Manifest(step, files, fingerprint)


def read_manifest(folder: str | Path) -> Manifest:
    """Raises BrokenCheckpointError: there is none, or it isn't what was written."""
    path = Path(folder) / MANIFEST_NAME
    name = Path(folder).name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("sha256")
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{name}: {MANIFEST_NAME} is missing") from None
    except OSError as error:
        raise BrokenCheckpointError(f"{name}: {MANIFEST_NAME} can't be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError):  # not text, not JSON, not a mapping
        raise BrokenCheckpointError(f"{name}: {MANIFEST_NAME} isn't what was saved") from None
    if checksum != _content_sha256(content):
        raise BrokenCheckpointError(f"{name}: {MANIFEST_NAME} isn't what was saved")
    if content["format"] != MANIFEST_FORMAT:
        raise BrokenCheckpointError(
            f"{name}: {MANIFEST_NAME} is of format {content['format']}, this version reads {MANIFEST_FORMAT}"
        )
    return Manifest(content["step"], content["files"], content["fingerprint"])


def verify(folder: str | Path) -> Manifest:
    """Read every file of a checkpoint and compare it with the manifest. Files that it doesn't name are not looked at.

    Raises:
        BrokenCheckpointError: the first file that is missing, can't be read, or isn't what was saved.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    stamp = []
    for name, entry in manifest.files.items():
        try:
            found = (folder / name).stat()
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror})"
            raise BrokenCheckpointError(f"{folder.name}: {name} {what}") from None
        if found.st_size != entry["size"]:
            raise BrokenCheckpointError(
                f"{folder.name}: {name} has {found.st_size:,} bytes, {entry['size']:,} were saved"
            )
        stamp.append((name, found.st_size, found.st_mtime_ns))
    key, stamp = str(folder.resolve()), (*stamp, (folder / MANIFEST_NAME).stat().st_mtime_ns)
    if _verified.get(key) == stamp:
        return manifest
    with ThreadPoolExecutor(NUM_READERS) as readers:
        outcomes = list(readers.map(lambda name: _read_or_reason(folder / name), manifest.files))
    for (name, entry), (digest, reason) in zip(manifest.files.items(), outcomes, strict=True):
        if reason is not None:
            raise BrokenCheckpointError(f"{folder.name}: {name} can't be read ({reason})")
        if digest != entry["sha256"]:
            raise BrokenCheckpointError(f"{folder.name}: {name} isn't what was saved (its sha256 differs)")
    _verified[key] = stamp
    return manifest


def _read_or_reason(path: Path) -> tuple[str | None, str | None]:
    try:
        return file_sha256(path), None
    except OSError as error:
        return None, error.strerror


def file_sha256(path: Path) -> str:
    """The hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, and on the disk when this returns."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
