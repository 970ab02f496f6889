"""A run's folder on the Hub: once, at the end, private, without the states of training and without paths of this machine."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy

from hf_ext.hub.file_names import matches
from hf_ext.hub.push import LEFT_OUT, check_target, push
from hf_ext.hub.repository import HubRepository
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.checkpoints.agreement import agreed
from hf_ext.training.local_paths import public_yaml


# logs that name the machine, arguments that are paths and the recipe has anyway, peft's card beside the run's own
STAYS_HERE = (*LEFT_OUT, "runs/*", "training_args.json", "adapter/README.md")


class RunPush:
    """What `--push_to_hub` asks for. `run` does it."""

    def __init__(self, training: HfxTrainingArguments):
        self.repo_id = training.hub_model_id or Path(training.output_dir).resolve().name
        self.private = training.hub_private_repo is not False
        self.revision = training.hub_revision

    def check(self) -> None:
        """Asks the Hub whether it could be done; see `check_target`."""
        check_target(HubRepository(self.repo_id), private=self.private, revision=self.revision)

    def run(self, folder: Path) -> CommitInfo:
        """Push what `published` makes of the folder, in one commit."""
        with published(folder) as copy:
            return push(
                copy,
                self.repo_id,
                private=self.private,
                revision=self.revision,
                message=f"Training of {folder.resolve().name}",
                leave_out=(),
            )


def take_over_push(training: HfxTrainingArguments, given: dict) -> RunPush | None:
    """The push that the arguments ask for, which the stock Trainer then leaves to the run: it would make the repository
    before there is anything to put into it.

    Args:
        given: the fields of the recipe's section `training`.

    Raises:
        ValueError: a strategy other than the end, or a token in the recipe. HubError: it couldn't be done.
    """
    if given.get("hub_token"):
        raise ValueError(
            "training.hub_token: would stand in the recipe, which is kept and pushed; set HF_TOKEN, or run `hf auth login`"
        )
    if not training.push_to_hub:
        return None
    if training.hub_strategy != HubStrategy.END or training.hub_always_push:
        asked = "hub_always_push=True" if training.hub_always_push else f"hub_strategy={training.hub_strategy.value!r}"
        raise ValueError(f"training.{asked}: a recipe pushes once, at the end; leave it out")
    asked = RunPush(training)
    agreed(asked.check, here=training.should_save)
    training.push_to_hub = False
    return asked


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A copy of a run's folder as others may see it, beside it, of links where the disk has them; deleted at the end.

    Paths of this machine are cut down to their last part: in the recipe, in the Trainer's state, in an adapter's base.
    """
    with TemporaryDirectory(prefix=".push_", dir=folder.resolve().parent) as made:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or matches(name, STAYS_HERE):
                continue
            copy = Path(made) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "recipe.yaml":
                copy.write_text(public_yaml(path.read_text(encoding="utf-8")), encoding="utf-8")
            elif path.name == "trainer_state.json":
                _cut_path(path, copy, "best_model_checkpoint")
            elif path.name == "adapter_config.json":
                _cut_path(path, copy, "base_model_name_or_path")
            else:
                _link_or_copy(path, copy)
        yield Path(made)


def _cut_path(path: Path, copy: Path, field: str) -> None:
    """The same JSON, with the last part alone where a field is a local path."""
    content = json.loads(path.read_text(encoding="utf-8"))
    value = content.get(field)
    if value and (Path(value).is_absolute() or Path(value).exists()):
        content[field] = Path(value).name
    copy.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _link_or_copy(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # not every disk has links
        shutil.copyfile(path, copy)
