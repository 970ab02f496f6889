"""What must not leave this machine with a model: tokens, the user's and the machine's name, paths of this machine."""

import getpass
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import constants, get_token


TOKEN = re.compile(rb"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}")
# an absolute path of two parts or more, not what follows in a URL or a relative one
ABSOLUTE_PATH = re.compile(rb"(?<![\w.:/~<-])((?:/[\w.@+-]+){2,})")
# bytes that are looked through at once, and of what may lie across the end of them
BLOCK, LONGEST = 1 << 24, 1 << 10
# names that say nothing about anybody, and would be found in any text
EVERYBODY = {
    *(
        "admin",
        "app",
        "build",
        "code",
        "docker",
        "guest",
        "home",
        "jovyan",
        "localhost",
        "me",
        "model",
        "nobody",
        "root",
    ),
    *("runner", "server", "test", "ubuntu", "user", "vagrant", "vscode", "worker"),
}
# folders that are the same on every machine
SYSTEM_FOLDERS = {b"bin", b"dev", b"etc", b"lib", b"lib64", b"opt", b"proc", b"sbin", b"sys", b"usr", b"var"}
# where a run, and not a text that a model learnt from, has the word
WORDS_OF_A_RUN = (".md", ".json", ".yaml", ".yml", ".txt", ".log", ".py", ".toml", ".cfg", ".ini", ".jinja", ".xml")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "source.json", "target.json")


@dataclass(frozen=True)
class PrivateStrings:
    """What is private here and now.

    Attributes:
        secrets: values of tokens and keys. names: of the user and the machine. folders: absolute paths.
        public: names and paths that may appear all the same.
    """

    secrets: tuple[str, ...]
    names: tuple[str, ...]
    folders: tuple[str, ...]
    public: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, *, public: Iterable[str] = (), token: str | None = None) -> "PrivateStrings":
        """
        Args:
            public: what may appear although it is private here, such as the name of the repository's owner.
            token: one beside those of the environment and the client's log-in.
        """
        home, package = Path.home(), Path(__file__).parents[2]
        secrets = {
            value
            for name, value in os.environ.items()
            if re.search(r"(TOKEN|_KEY|SECRET|PASSWORD)$", name, re.IGNORECASE)
        }
        secrets = {value for value in (*secrets, get_token(), token) if value and len(value) >= 12 and "/" not in value}
        names = {_user_name(), home.name, socket.gethostname()}
        folders = {home, Path.cwd(), package, Path(sys.prefix), Path(constants.HF_HOME)}
        folders |= {folder.resolve() for folder in folders}
        return cls(
            tuple(sorted(secrets)),
            tuple(sorted(name for name in names if len(name) > 2 and name.lower() not in EVERYBODY)),
            tuple(sorted(str(folder) for folder in folders if folder != Path(folder.anchor))),
            tuple(public),
        )

    def _is_public(self, word: str) -> bool:
        return any(word == public or word.startswith(f"{public.rstrip('/')}/") for public in self.public)

    def holds_secret(self, text: str) -> bool:
        """Whether a token or key is in a text."""
        return TOKEN.search(text.encode()) is not None or any(secret in text for secret in self.secrets)

    def find_in(self, folder: Path, names: Iterable[str], *, data: bool = False) -> list[str]:
        """One line for each private string in a file or its name; a token itself is never repeated.

        Args:
            folder, names: the files. data: whether they are data, in which words and paths are what the texts say.
        """
        found = []
        for name in names:
            for what in (*self._in_bytes(name.encode(), name, words=True), *self._in_file(folder / name, name, data)):
                found.append(f"{name}: {what}")
        return list(dict.fromkeys(found))

    def _in_file(self, path: Path, name: str, data: bool) -> Iterator[str]:
        last = PurePosixPath(name).name
        words = last.endswith(WORDS_OF_A_RUN) and last not in VOCABULARIES and not (data and last != "README.md")
        for content in _blocks(path):
            yield from self._in_bytes(content, name, words=words)
        if last.endswith(".parquet"):
            for rows in _unpacked(path):
                yield from self._in_bytes(rows, name, words=False)

    def _in_bytes(self, content: bytes, name: str, *, words: bool) -> Iterator[str]:
        if _has(content, b"hf_", TOKEN) or any(secret.encode() in content for secret in self.secrets):
            yield "holds a token or key"
        for folder in self.folders:
            # `/root` alone is in many a vocabulary; a longer path isn't
            looked_for = (words or folder.count("/") > 1) and not self._is_public(folder)
            if looked_for and _has(content, folder.encode(), _whole(folder, rb"[\w.~-]", rb"[\w-]")):
                yield f"holds a path of this machine, {folder!r}"
        if not words:
            return
        for word in self.names:
            letter = rb"[A-Za-z0-9_]"
            if not self._is_public(word) and _has(content, word.encode(), _whole(word, letter, letter)):
                yield f"holds the name {word!r} of this user or machine"
        for match in ABSOLUTE_PATH.finditer(content):
            _, first, second, *_ = match[1].split(b"/")
            is_here = first not in SYSTEM_FOLDERS and os.path.exists(b"/%s/%s" % (first, second))
            if is_here and not self._is_public(path := match[1].decode()):
                yield f"holds a path of this machine, {path!r}"


def check_nothing_private(
    folder: Path,
    names: Iterable[str],
    *,
    allowed: Iterable[str] = (),
    owner: str | None = None,
    token: str | None = None,
    data: bool = False,
) -> None:
    """Raises ValueError, one line, for the first files that hold a token, a name or path of this machine.

    Args:
        folder, names: the files to look through. allowed: strings that may be there, such as a name that is a word of the
            text too; no token can be. owner: of the repository, who is public. token: that of the push, where it was given.
        data: see `PrivateStrings.find_in`.
    """
    private = PrivateStrings.of_this_machine(public=[*allowed, *([owner] if owner else [])], token=token)
    if found := private.find_in(folder, names, data=data):
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ValueError(
            f"{'; '.join(found[:3])}{more}: nothing is pushed; take it out, or name what may be public: allowed=('…',)"
        )


def _whole(word: str, before: bytes, after: bytes) -> re.Pattern[bytes]:
    """Matches a word or path where it isn't a part of a longer one."""
    return re.compile(rb"(?<!%s)%s(?!%s)" % (before, re.escape(word.encode()), after))


def _has(content: bytes, literal: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether `pattern`, which begins with `literal`, matches anywhere; weights are gigabytes, and `find` is quick."""
    start = content.find(literal)
    while start >= 0:
        if pattern.match(content, start):
            return True
        start = content.find(literal, start + 1)
    return False


def _blocks(path: Path) -> Iterator[bytes]:
    """A file's content, each block with the end of the one before."""
    with path.open("rb") as file:
        end = b""
        while block := file.read(BLOCK):
            yield end + block
            end = (end + block)[-LONGEST:]


def _unpacked(path: Path) -> Iterator[bytes]:
    """A parquet file's rows as they are without compression, some thousands at a time."""
    import pyarrow.parquet  # comes with `datasets`, as parquet files do

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield batch.serialize().to_pybytes()


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return ""
