"""The folder of a run: whether it may be written to, which checkpoint to go on from, and whether that fits."""

import json
import os
from pathlib import Path

import yaml
from transformers import AutoConfig, PretrainedConfig
from transformers.trainer_utils import get_last_checkpoint

from hf_ext.training.arguments import HfxTrainingArguments


def find_checkpoint(output_dir: str, resume: str | bool | None) -> str | None:
    """The checkpoint to go on from, or None to start anew.

    Args:
        resume: None, "auto" (the last checkpoint if there is one) or True (there must be one), or a checkpoint's path.

    Raises:
        ValueError: nothing to resume, or the folder holds a run that would be overwritten.
    """
    folder = Path(output_dir)
    last = get_last_checkpoint(output_dir) if folder.is_dir() else None
    finished = [name for name in ("train_results.json", "model.safetensors") if (folder / name).exists()]
    if resume in (None, False) and last is not None:
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({Path(last).name}); "
            "go on from it with --resume, choose another folder, or delete it"
        )
    if last is None and finished and resume in (None, False, "auto"):
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({finished[0]}) without a checkpoint to go on from; "
            "choose another folder, or delete it"
        )
    if resume in (None, False):
        return None
    if resume in (True, "auto"):
        if last is None and resume is True:
            raise ValueError(f"--resume: no checkpoint in {output_dir!r}; leave --resume out to start anew")
        return last
    if not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(f"--resume {resume}: not a checkpoint (no trainer_state.json in it)")
    return str(resume)


def check_writable(output_dir: str) -> None:
    """Raises ValueError where the folder can't be made or written to."""
    there = Path(output_dir).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "can't be written to" if there.is_dir() else "is a file"
        raise ValueError(f"training.output_dir={output_dir!r}: {there.name or there} {what}; choose another folder")


# sections of a recipe that may change on the way; the model is compared by its configuration
FREE_SECTIONS = ("model", "data", "training", "samples", "generation", "answers", "voting", "writing", "constraints")

# what transformers writes into a config beside the architecture
_NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}


def check_same_run(checkpoint: str | None, config: PretrainedConfig, values: dict[str, dict]) -> None:
    """Raises ValueError where a checkpoint was trained as another model, or by a recipe that differs beside how it trains.

    Args:
        config, values: the model and the recipe's sections as they are asked for now; `FREE_SECTIONS` may differ.
    """
    if checkpoint is None:
        return
    has_model = (Path(checkpoint) / "config.json").is_file()  # an adapter's checkpoint has the adapter alone
    saved, asked = (AutoConfig.from_pretrained(checkpoint).to_dict(), config.to_dict()) if has_model else ({}, {})
    for name in sorted(set(saved) | set(asked)):
        if name not in _NOT_ARCHITECTURE and saved.get(name) != asked.get(name):
            raise ValueError(
                f"model.{name}={asked.get(name)!r}: {Path(checkpoint).name} was trained with {saved.get(name)!r}; "
                "set it back, or start anew in another folder"
            )
    recipe = Path(checkpoint).parent / "recipe.yaml"
    if recipe.is_file():
        before = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
        free = set(FREE_SECTIONS) if has_model else set(FREE_SECTIONS) - {"model"}
        for section in sorted((set(before) | set(values)) - free):
            if before.get(section, {}) != values.get(section, {}):
                raise ValueError(
                    f"{section}: {values.get(section, {})} is not what {Path(checkpoint).name} was trained with, "
                    f"{before.get(section, {})}; set it back, or start anew in another folder"
                )


def is_complete(checkpoint: str | None, training: HfxTrainingArguments) -> bool:
    """Whether nothing is left to train after `checkpoint`."""
    if checkpoint is None:
        return False
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    if training.max_steps > 0:
        return state["global_step"] >= training.max_steps
    return state["global_step"] >= state["max_steps"] and state["num_train_epochs"] >= training.num_train_epochs


def steps_done(checkpoint: str | None) -> int:
    """Optimizer steps behind a checkpoint."""
    if checkpoint is None:
        return 0
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def whole_training_loss(log_history: list[dict], stock: float, resumed_at: int, last_step: int) -> float:
    """Mean loss over all steps of a run that was resumed.

    The stock figure divides the sum since the resume by all steps. What came before is in the log, up to the last entry
    before the checkpoint; steps between that entry and the checkpoint are not counted.
    """
    total, logged = stock * last_step, 0
    for entry in log_history:
        if "loss" in entry and entry["step"] <= resumed_at:
            total += entry["loss"] * (entry["step"] - logged)
            logged = entry["step"]
    counted = logged + last_step - resumed_at
    return total / counted if counted else stock
