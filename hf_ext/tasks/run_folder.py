"""The folder of a run: whether it may be written to, which checkpoint to go on from, and whether that fits."""

import json
import tempfile
from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import logging

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.checkpoints.agreement import agreed
from hf_ext.training.checkpoints.fingerprint import difference, model_fields, plain
from hf_ext.training.checkpoints.folders import checkpoints_in
from hf_ext.training.checkpoints.manifest import read_manifest, verify
from hf_ext.training.checkpoints.resume import newest_verified


logger = logging.get_logger(__name__)


def find_checkpoint(training: HfxTrainingArguments, resume: str | bool | None) -> str | None:
    """The checkpoint to go on from, the same on every process, or None to start anew.

    Args:
        resume: None, "auto" (the newest checkpoint that verifies, if there is one) or True (there must be one), or a
            checkpoint's path. Those that don't verify are set aside, and a warning says so.

    Raises:
        ValueError: nothing to resume, or the folder holds a run that would be overwritten.
    """
    return agreed(lambda: _find_checkpoint(training.output_dir, resume), here=training.should_save)


def _find_checkpoint(output_dir: str, resume: str | bool | None) -> str | None:
    folder = Path(output_dir)
    there = checkpoints_in(folder)
    if resume in (None, False) and there:
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({there[-1].name}); "
            "go on from it with --resume, choose another folder, or delete it"
        )
    finished = [name for name in ("train_results.json", "model.safetensors") if (folder / name).exists()]
    if not there and finished and resume in (None, False, "auto"):
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({finished[0]}) without a checkpoint to go on from; "
            "choose another folder, or delete it"
        )
    if resume in (None, False):
        return None
    if resume in (True, "auto"):
        newest, notes = newest_verified(folder)
        for note in notes:
            logger.warning(note)
        if newest is None and resume is True:
            whole = " that is whole" if notes else ""
            raise ValueError(f"--resume: no checkpoint{whole} in {output_dir!r}; leave --resume out to start anew")
        return None if newest is None else str(newest)
    if not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(f"--resume {resume}: not a checkpoint (no trainer_state.json in it)")
    verify(resume)
    return str(Path(resume))


def check_writable(output_dir: str) -> None:
    """Raises ValueError where the folder can't be made or written to. It tries: permissions alone don't tell of all."""
    there = Path(output_dir).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"training.output_dir={output_dir!r}: {there.name} is a file; choose another folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(
            f"training.output_dir={output_dir!r}: {there.name or there} can't be written to ({error.strerror}); "
            "choose another folder"
        ) from None


# sections of a recipe that may change on the way: the model is compared by its configuration and its parameters, the data
# by its rows (or, of a stream, by its section), how to train by the arguments that count
FREE_SECTIONS = ("model", "training", "samples", "generation", "answers", "voting", "writing", "constraints")


def sections_of_a_run(values: dict[str, dict]) -> dict[str, dict]:
    """The sections that make a run what it is, as its fingerprint has them."""
    return plain({name: section for name, section in values.items() if name not in FREE_SECTIONS})


def check_same_run(
    checkpoint: str | None, config: PretrainedConfig, values: dict[str, dict], allowed: tuple[str, ...] = ()
) -> None:
    """Raises ValueError where a checkpoint was trained as another model, or by a recipe that differs beside how it trains.

    What can be known before there is a model; the Trainer compares the rest of the fingerprint.

    Args:
        config, values: the model and the recipe's sections as they are asked for now. allowed: `--allow_change`.
    """
    if checkpoint is None:
        return
    saved = read_manifest(checkpoint).fingerprint
    asked = model_fields(config)
    # what building the model adds, such as how it is quantized, isn't there yet
    asked |= {name: value for name, value in saved.get("model", {}).items() if name not in asked}
    sections = {name: section for name, section in sections_of_a_run(values).items() if name != "data"}
    now = {"model": asked, "sections": sections if "sections" in saved else {}}
    changed = difference(Path(checkpoint).name, saved, now, allowed)
    if changed is not None:
        raise ValueError(changed)


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


def whole_training_loss(log_history: list[dict], since_resume: float, resumed_at: int, last_step: int) -> float:
    """Mean loss over all steps of a run that was resumed.

    The stock figure is of the steps since the resume, or, in older versions, their sum divided by all steps. What came
    before is in the log, up to the last entry before the checkpoint; steps between that entry and the checkpoint are not
    counted.

    Args:
        since_resume: sum of the losses of the steps after `resumed_at`.
    """
    total, logged = since_resume, 0
    for entry in log_history:
        if "loss" in entry and entry["step"] <= resumed_at:
            total += entry["loss"] * (entry["step"] - logged)
            logged = entry["step"]
    return total / max(1, logged + last_step - resumed_at)
