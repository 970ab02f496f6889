"""A folder to the Hub: checked here first, then in one commit, complete or not at all.

push("outputs/quickstart", "me/quickstart")                                 # private; main
push([model, tokenizer], "me/mine", revision="experiment", tag="v1")        # a branch, and a name for the commit
push(dataset, "me/rows", repo_type="dataset")

Order: everything that can be wrong here is found before anything is sent. Large files are uploaded by their SHA-256 before
the commit names them, so an upload that dies leaves no commit, and the next call sends only what the Hub hasn't got.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

from hf_ext.hub.file_names import matches, several
from hf_ext.hub.folder_checks import check_folder
from hf_ext.hub.private_strings import check_nothing_private
from hf_ext.hub.repository import HubError, HubRepository, RemoteFile
from hf_ext.hub.saved_folder import as_folder


# what lies in a folder beside what it is: the states of training, and what tools leave
LEFT_OUT = ("checkpoint-*/*", "_*checkpoint-*/*", ".git/*", ".cache/*", "*__pycache__/*", "*.pyc")
# the Hub's own file, which a folder on disk hasn't got
KEPT_THERE = {".gitattributes"}


def push(
    source,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    parent_commit: str | None = None,
    message: str | None = None,
    leave_out: Iterable[str] = LEFT_OUT,
    allowed: Iterable[str] = (),
    token: str | None = None,
    endpoint: str | None = None,
    tell: Callable[[str], None] = print,
) -> CommitInfo:
    """Push a folder, or objects that are saved into one, as one commit. What hasn't changed isn't sent or committed again.

    Args:
        source: a folder's path, or what `as_folder` saves: models, tokenizers, …, peft models, cards, data sets.
        repo_id: "owner/name", made where it isn't there; "name" alone is the token's own.
        repo_type: "model" or "dataset".
        private: what is made is private. A repository that is public already is refused unless this is False;
            one that is there stays what it is.
        revision: the branch, made from main where it isn't there; default main. tag: a new name for the commit.
        parent_commit: the commit that the folder goes on from; another head of the branch is refused. Default: the head as
            it is when the push begins, so that nobody's commit is covered in between.
        message: of the commit. leave_out: patterns of files that stay here. allowed: see `check_nothing_private`.
        token, endpoint: see `HubRepository`. tell: takes the lines about what is pushed.

    Returns:
        The commit as `huggingface_hub` has it; the branch's head where nothing has changed.

    Raises:
        ValueError: something in the folder or the arguments, before anything was sent.
        HubError: the Hub refused or couldn't be reached; no commit was made, except where the line says so, or where the
            connection broke before the Hub's answer to it came (the next call finds it and makes no second one). A
            repository or branch that this call made is deleted again when the Hub refused, and kept when the connection
            broke, for the next call to go on from what was uploaded.
    """
    repository = HubRepository(repo_id, repo_type, token=token, endpoint=endpoint)
    leave_out, allowed = several("leave_out", leave_out), several("allowed", allowed)
    with as_folder(source, repo_type) as folder:
        everything = sorted(_files(folder))
        names = [name for name in everything if not matches(name, leave_out)]
        check_folder(folder, names, repo_type)
        is_data = repo_type == "dataset"
        check_nothing_private(folder, names, allowed=allowed, owner=_owner(repo_id), token=token, data=is_data)
        sizes = {name: (folder / name).stat().st_size for name in names}
        target = check_target(repository, private=private, revision=revision, tag=tag, parent_commit=parent_commit)
        stale = sorted(_stale(names, target.files))
        tell(_plan(repository, target, sizes, len(everything) - len(names), stale))
        return _Push(repository, target, folder, sizes, stale, private, message or "Push by hf_ext", tag, tell).run()


@dataclass(frozen=True)
class Target:
    """Where a push goes. head: of the branch, None where it is to be made; base: what from, None: no repository."""

    branch: str
    private: bool
    base: str | None
    head: str | None
    files: dict[str, RemoteFile]


def check_target(
    repository: HubRepository,
    *,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    parent_commit: str | None = None,
) -> Target:
    """What a push to this repository would find; changes nothing. Arguments: those of `push`.

    Raises:
        ValueError: a branch, tag or parent that can't be meant, or a public repository that wasn't asked for.
        HubError: no token, or one that isn't accepted; or the branch has moved on from its parent.
    """
    branch = revision or "main"
    repository.account()
    is_private = repository.is_private()
    if is_private is None:
        if parent_commit is not None:
            raise ValueError(f"parent_commit={parent_commit!r}: there is no {repository.repo_id} yet; leave it out")
        return Target(branch, private, None, None, {})
    if private and not is_private:
        raise ValueError(
            f"{repository.repo_id}: is public; say private=False to push there, or choose another repository"
        )
    branches, tags = repository.branches_and_tags()
    if branch not in branches and (branch in tags or re.fullmatch("[0-9a-f]{40}", branch)):
        kind = "tag" if branch in tags else "commit"
        raise ValueError(f"revision={branch!r}: is a {kind}; a push goes to a branch")
    if tag is not None and tag in tags:
        raise ValueError(f"tag={tag!r}: is {tags[tag][:12]} already; choose another, a tag doesn't move")
    head = branches.get(branch)
    base = head or branches.get("main")
    if base is None:
        raise HubError(f"{repository.repo_id}: has no branch main to make {branch} from; make one there first")
    if parent_commit is not None and not (len(parent_commit) >= 7 and base.startswith(parent_commit)):
        raise _moved(repository, branch, parent_commit, base)
    return Target(branch, is_private, base, head, repository.files(base))


class _Push:
    """The sending, after everything here has been checked."""

    def __init__(self, repository, target, folder, sizes, stale, private, message, tag, tell):
        self.repository, self.target, self.folder, self.sizes, self.stale = repository, target, folder, sizes, stale
        self.private, self.message, self.tag, self.tell = private, message, tag, tell
        self.api = repository.api
        self.where = {"repo_id": repository.repo_id, "repo_type": repository.repo_type}

    def run(self) -> CommitInfo:
        head = self._make_room()
        try:
            info = self._commit(head)
        except HubError as error:
            raise self._after_failure(error) from error
        self._check_arrived(info.oid)
        if self.tag is not None:
            with self.repository.asking(f"committed as {info.oid[:12]}, but the tag {self.tag} couldn't be made"):
                self.api.create_tag(**self.where, tag=self.tag, revision=info.oid)
        self.tell(f"{self.repository.repo_id}: {self.target.branch} is {info.oid}{f', {self.tag}' if self.tag else ''}")
        return info

    def _make_room(self) -> str:
        """Makes repository and branch where they aren't there; returns the branch's head."""
        head = self.target.base
        if head is None:
            with self.repository.asking("can't be made"):
                self.api.create_repo(**self.where, private=self.private)
            head = self.repository.find()
        if self.target.head is None and self.target.branch != "main":
            with self.repository.asking(f"branch {self.target.branch} can't be made"):
                self.api.create_branch(**self.where, branch=self.target.branch)
        return head

    def _commit(self, head: str) -> CommitInfo:
        branch = self.target.branch
        additions = self.additions = [CommitOperationAdd(name, str(self.folder / name)) for name in self.sizes]
        deletions = [CommitOperationDelete(name, is_folder=False) for name in self.stale]
        with self.repository.asking("the upload failed"):
            # "": files aren't passed over in silence because a .gitignore there names them
            self.api.preupload_lfs_files(
                **self.where, additions=additions, revision=branch, free_memory=False, gitignore_content=""
            )
        try:
            with self.repository.asking("the commit failed"):
                return self.api.create_commit(
                    **self.where,
                    operations=[*deletions, *additions],
                    commit_message=self.message,
                    revision=branch,
                    parent_commit=head,
                )
        except HubError as error:
            if error.status in (409, 412):
                raise _moved(self.repository, branch, head, None, error.status) from error
            raise

    def _after_failure(self, error: HubError) -> HubError:
        """What this call made goes away again where the Hub refused; where it broke off, the next call goes on from it."""
        made_repository = self.target.base is None
        made_branch = self.target.head is None and not made_repository and self.target.branch != "main"
        if not made_repository and not made_branch:
            return error
        what = "the new repository" if made_repository else f"the new branch {self.target.branch}"
        if error.status is None or error.status >= 500:
            return HubError(f"{error}; {what} stays, and what was uploaded isn't sent twice", error.status)
        reason = str(error).removeprefix(f"{self.repository.repo_id}: ")
        with self.repository.asking(f"{reason}; {what} couldn't be deleted again"):
            if made_repository:
                self.api.delete_repo(**self.where)
            else:
                self.api.delete_branch(**self.where, branch=self.target.branch)
        return HubError(f"{error}; {what} is deleted again", error.status)

    def _check_arrived(self, commit: str) -> None:
        """The commit holds every file with the content that was read here."""
        there = self.repository.files(commit)
        for addition in self.additions:
            name, found = addition.path_in_repo, there.get(addition.path_in_repo)
            if found is not None and found.sha256 is not None:
                arrived = found.sha256 == addition.upload_info.sha256.hex()
            else:
                arrived = found is not None and found.is_same_as(self.folder / name)
            if not arrived:
                raise HubError(
                    f"{self.repository.repo_id}: {name} isn't in {commit[:12]} as it is here; was the folder written to "
                    "meanwhile? push again"
                )


def _moved(
    repository: HubRepository, branch: str, parent: str, head: str | None, status: int | None = None
) -> HubError:
    now = f", its head is {head[:12]}" if head else " meanwhile"
    return HubError(
        f"{repository.repo_id}: {branch} has moved on from {parent[:12]}{now}; pull it, see what has changed, "
        "and push again with that parent_commit",
        status,
    )


def _files(folder: Path) -> list[str]:
    """Names of everything that is no folder; links to folders are named, too, for the checks to refuse."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _owner(repo_id: str) -> str | None:
    return repo_id.split("/")[0] if "/" in repo_id else None


def _series(name: str) -> str | None:
    """What a file of weights or rows is a part of: another number of parts, or none, takes the place of these."""
    match = re.fullmatch(r"(.+?)(-\d{5}-of-\d{5})?\.(safetensors|parquet|jsonl)(\.index\.json)?", name)
    return f"{match[1]}.{match[3]}" if match else None


def _stale(names: list[str], there: dict[str, RemoteFile]) -> set[str]:
    """Files there which would be loaded beside or instead of those that are pushed: older parts of the same series, and
    torch's pickles of a model that is saved as safetensors."""
    pushed = {series for name in names if (series := _series(name))}
    stale = {name for name in there if _series(name) in pushed}
    if "model.safetensors" in pushed:
        stale |= {name for name in there if re.fullmatch(r"pytorch_model.*\.bin(\.index\.json)?", name)}
    return stale - set(names) - KEPT_THERE


def _plan(repository: HubRepository, target: Target, sizes: dict[str, int], left_out: int, stale: list[str]) -> str:
    kind = f"{'private' if target.private else 'public'} {repository.repo_type}"
    line = f"{repository.repo_id} ({kind}, {target.branch}): {len(sizes)} files, {_bytes(sum(sizes.values()))}"
    if target.base is None:
        line += ", a new repository"
    if left_out:
        line += f"; {left_out} files left out"
    return line + (f"; takes the place of {', '.join(stale)}" if stale else "")


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
