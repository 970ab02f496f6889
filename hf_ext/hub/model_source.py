"""Where a model comes from when a user names one: a folder, or one commit of the Hub, looked through before it is loaded."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from hf_ext.hub.file_names import PICKLES
from hf_ext.hub.model_folder import check_holds_model
from hf_ext.hub.repository import HubRepository
from hf_ext.hub.untrusted_folder import check_loadable


COMMIT = re.compile("[0-9a-f]{40}")
# what a model and its tokenizer are loaded from; code comes along, and runs with the user's word only
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken")


@dataclass(frozen=True)
class ModelSource:
    """A folder that may be loaded from, and how.

    Attributes:
        folder: with the files. commit: of the Hub, or None. trust_remote_code: whether the folder's own code may run.
    """

    folder: Path
    commit: str | None
    trust_remote_code: bool

    @property
    def options(self) -> dict:
        """For `from_pretrained` of a configuration or tokenizer: nothing is fetched or asked."""
        return {"trust_remote_code": self.trust_remote_code, "local_files_only": True}

    @property
    def weight_options(self) -> dict:
        """For `from_pretrained` of a model."""
        return {**self.options, "use_safetensors": True}

    def config(self) -> dict:
        """config.json as it is written.

        Raises:
            ValueError: there is none.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            check_holds_model(self.folder)
        return json.loads(path.read_text(encoding="utf-8"))


def find_model(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelSource:
    """The folder that is meant, safe to load from; a repository of the Hub is fetched into the client's cache.

    Args:
        name: a folder, or "owner/name" on the Hub. revision: of the Hub: a branch, tag or commit.
        trust_remote_code: the user's own word that the code which comes with the model may run.

    Raises:
        ValueError: no such folder or repository, what `check_loadable` refuses, or trust in code that may change:
            on the Hub it needs the 40 digits of a commit.
        HubError: the Hub refused, or couldn't be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r}: has no effect for a folder; leave it out")
        check_loadable(folder, trust_remote_code=trust_remote_code)
        source = ModelSource(folder, None, trust_remote_code)
    else:
        if folder.is_absolute() or len(folder.parts) > 2 or name.startswith((".", "~", "outputs")):
            raise ValueError(f"{name}: no such folder; train or pull a model first")
        if trust_remote_code and not COMMIT.fullmatch(revision or ""):
            raise ValueError(
                f"trust_remote_code: {name} may change after you have read it; give the commit that you have read, "
                "--revision with its 40 digits"
            )
        source = _fetch(name, revision, trust_remote_code)
    _check_code_is_allowed(source, name)
    return source


def _fetch(name: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    repository = HubRepository(name)
    with repository.asking("no such folder here, and it can't be downloaded"):
        fetched = snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(PICKLES), library_name="hf_ext"
        )
    folder = Path(fetched)
    check_loadable(folder, trust_remote_code=trust_remote_code, cache=folder.parent.parent)
    print(f"{name}: commit {folder.name}", file=sys.stderr)
    return ModelSource(folder, folder.name, trust_remote_code)


def _check_code_is_allowed(source: ModelSource, name: str) -> None:
    """Raises ValueError where the model can be loaded by its own code only, and that wasn't allowed."""
    from transformers import CONFIG_MAPPING

    path = source.folder / "config.json"
    if source.trust_remote_code or not path.is_file():
        return
    config = source.config()
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{name}: its model_type {config.get('model_type')!r} is known by its own code only; read that, then say "
            "--trust_remote_code (and --revision, on the Hub)"
        )
