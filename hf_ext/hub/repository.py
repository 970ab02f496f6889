"""A repository of the Hub as push and pull see it: its head, its files, and what it refuses said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from hf_ext.models.configuration_choices import check_choice


REPO_TYPES = ("model", "dataset")
CLIENTS_ERRORS = (HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, FileMetadataError)


class HubError(OSError):
    """The Hub refused or couldn't be asked; the message is one line.

    Attributes:
        status: the answer's HTTP status, None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit. size: bytes. blob_id: SHA-1 as git has it. sha256: of a file that lies apart (LFS), else None."""

    size: int
    blob_id: str
    sha256: str | None

    def is_same_as(self, path: Path) -> bool:
        """Whether the file on disk has the same content."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is None:
            return git_hash(path.read_bytes()) == self.blob_id
        with path.open("rb") as file:
            return sha_fileobj(file).hex() == self.sha256


class HubRepository:
    """One repository, which may not be there yet.

    Args:
        repo_id: "owner/name"; "name" alone is the account's own. repo_type: "model" or "dataset".
        token: of the Hub; None for the one that `hf auth login` or HF_TOKEN gave. endpoint: None for HF_ENDPOINT's.

    Raises:
        ValueError: what can't be a repository.
    """

    def __init__(
        self, repo_id: str, repo_type: str = "model", *, token: str | None = None, endpoint: str | None = None
    ):
        check_choice("repo_type", repo_type, REPO_TYPES)
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id={repo_id!r}: {str(error).splitlines()[0]}; write it as owner/name") from None
        self.repo_id, self.repo_type = repo_id, repo_type
        self.api = HfApi(endpoint=endpoint, token=token, library_name="hf_ext")

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turns what the client raises inside into a HubError of one line that begins with the repository and `what`."""
        try:
            yield
        except CLIENTS_ERRORS as error:
            raise self._error(what, error) from error
        except (RuntimeError, ValueError, OSError) as error:
            # the client's reason is what it raised this from; an OSError without a number is its own, not the disk's
            if isinstance(error.__cause__, CLIENTS_ERRORS):
                raise self._error(what, error.__cause__) from error
            if isinstance(error, OSError) and not isinstance(error, HubError) and error.errno is None:
                raise HubError(f"{self.repo_id}: {what}: {str(error).splitlines()[0]}") from error
            raise

    def _error(self, what: str, error: BaseException) -> HubError:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        return HubError(f"{self.repo_id}: {what}: {_reason(error, status)}", status)

    def account(self) -> str:
        """The name that the token belongs to; `repo_id` gets it where it has no owner."""
        with self.asking("can't log in"):
            name = self.api.whoami()["name"]
        if "/" not in self.repo_id:
            self.repo_id = f"{name}/{self.repo_id}"
        return name

    def is_private(self) -> bool | None:
        """None where the repository isn't there, or isn't for this token to see."""
        with self.asking("can't be asked for"):
            try:
                return bool(self.api.repo_info(self.repo_id, repo_type=self.repo_type).private)
            except RepositoryNotFoundError:
                return None

    def find(self, revision: str | None = None) -> str | None:
        """The commit that a branch, a tag or (part of) a commit's name means, 40 hexadecimal digits; None: there is none."""
        with self.asking(f"revision {revision or 'main'} can't be asked for"):
            try:
                return self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=revision or "main").sha
            except RevisionNotFoundError:
                return None

    def branches_and_tags(self) -> tuple[dict[str, str], dict[str, str]]:
        """name -> commit, of each."""
        with self.asking("its branches can't be asked for"):
            refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        return tuple({ref.name: ref.target_commit for ref in some} for some in (refs.branches, refs.tags))

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """name -> file of a commit, folders walked through."""
        with self.asking(f"the files of {commit[:12]} can't be asked for"):
            tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit, repo_type=self.repo_type)
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
                for entry in tree
                if isinstance(entry, RepoFile)
            }


def _reason(error: BaseException, status: int | None) -> str:
    """Without the client's URLs, which may carry a signature."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 keeps every request back; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, FileMetadataError):
        return "what answers there is no Hub; see HF_ENDPOINT, and the proxy's settings"
    if status is None:
        return f"the connection broke ({type(error).__name__}); try again"
    said = " ".join((error.server_message or "").split())
    said = f", {said}" if said else ""
    if status == 401:
        return f"the token isn't accepted (401{said}); run `hf auth login`, or set HF_TOKEN to one that is valid"
    if status == 403:
        return f"the token may not do this (403{said}); take one with write access to this owner"
    if status == 404:
        return f"there is no such thing, or the token may not see it (404{said})"
    return f"the Hub answered {status}{said}"
