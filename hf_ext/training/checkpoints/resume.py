"""Which checkpoint to go on from: the newest that verifies, with all that an exact resume needs."""

import re
from collections.abc import Collection
from pathlib import Path

from hf_ext.training.checkpoints.folders import checkpoints_in, remove_unfinished, set_aside, step_of
from hf_ext.training.checkpoints.manifest import BrokenCheckpointError, Manifest, verify
from hf_ext.training.checkpoints.split_optimizer import PARTS_NAME, part_name


# what must be there beside the weights, as patterns of paths, by engine
_TRAINER_STATES = {"the Trainer's state": r"trainer_state\.json", "the schedule's state": r"scheduler\.pt"}
STATES = {
    "deepspeed": {
        "the Trainer's state": r"trainer_state\.json",
        "the name of DeepSpeed's last step": r"latest",
        "the optimizer's states": r"[^/]+/.*optim_states\.pt",
    },
    "fsdp": {**_TRAINER_STATES, "the optimizer's states": r"optimizer.*"},
    "sharded": {**_TRAINER_STATES, "the optimizer's states": re.escape(PARTS_NAME)},
}
ORDINARY_STATES = {**_TRAINER_STATES, "the optimizer's states": r"optimizer\.(pt|bin)"}
# the average alone is no weights to go on from, nor is an optimizer's part
_WEIGHTS = r"(?!ema\.|optimizer_).*\.safetensors|pytorch_model.*|[^/]+/(zero_pp_rank_.*|mp_rank_.*)model_states\.pt"


def newest_verified(run_folder: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, or None; those that don't are set aside, each with a line that says so.

    Changes names in the folder: for one process alone.
    """
    run_folder, notes = Path(run_folder), []
    if run_folder.is_dir():
        remove_unfinished(run_folder)
    for folder in reversed(checkpoints_in(run_folder)):
        try:
            verify(folder)
        except BrokenCheckpointError as error:
            notes.append(f"{error}; set aside as {set_aside(folder, 'broken').name}")
        else:
            return folder, notes
    return None, notes


def set_later_aside(checkpoint: Path) -> list[str]:
    """Set aside what lies beside a checkpoint and after it: it belongs to another course of the run. Lines that say so."""
    if checkpoint not in checkpoints_in(checkpoint.parent):
        return []
    later = [folder for folder in checkpoints_in(checkpoint.parent) if step_of(folder) > step_of(checkpoint)]
    return [
        f"{folder.name}: is later than {checkpoint.name}, from which training goes on; set aside as "
        f"{set_aside(folder, 'later').name}"
        for folder in later
    ]


def check_states(
    checkpoint: Path, manifest: Manifest, *, engine: str, world_size: int, allowed: Collection[str] = ()
) -> None:
    """Raises ValueError, one line, where a checkpoint lacks what an exact resume needs.

    Args:
        engine: as in the fingerprint. allowed: with "processes" their draws may begin anew.
    """
    needed = {"weights": _WEIGHTS, **STATES.get(engine.split()[0], ORDINARY_STATES)}
    if "processes" not in allowed:
        ranks = ["rng_state"] if world_size == 1 else [f"rng_state_{rank}" for rank in range(world_size)]
        needed |= {f"the random states ({rank}.pth)": rf"{rank}\.pth" for rank in ranks}
    if engine == "sharded":
        parts = [part_name(rank) for rank in range(world_size)]
        needed |= {f"the optimizer's states ({part})": re.escape(part) for part in parts}
    for what, pattern in needed.items():
        if not any(re.fullmatch(pattern, name) for name in manifest.files):
            raise ValueError(
                f"{checkpoint.name}: holds no file of {what}, so that training can't go on exactly (was it saved with "
                "save_only_model?); start anew in another folder with its weights as model.path"
            )
