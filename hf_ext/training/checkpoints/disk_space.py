"""Whether the disk holds the checkpoints that a run will keep, asked before the first step."""

import math
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerState
from transformers.trainer_utils import SaveStrategy

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.checkpoints.folders import checkpoints_in
from hf_ext.training.checkpoints.manifest import BrokenCheckpointError, read_manifest


# tokenizer, configuration, states of the Trainer and of the draws
FIXED_BYTES = 2**20
FP32_BYTES = 4


def check_disk_space(
    model: nn.Module, optimizer, args: HfxTrainingArguments, state: TrainerState, *, engine: str
) -> None:
    """Raises ValueError, one line, where the free space is less than the checkpoints still to come will take.

    Args:
        state: with the number of steps of the run, and between saves.
    """
    number = _num_saved(args, state)
    if number == 0:
        return
    folder = Path(args.output_dir).absolute()
    there = checkpoints_in(folder)
    size = _size_of(there) or checkpoint_bytes(model, optimizer, args, engine=engine)
    if args.save_total_limit and args.save_total_limit > 0:
        # the best and the last stay, and a new one is complete before an old one goes
        number = min(number, max(args.save_total_limit, 2 if args.load_best_model_at_end else 1) + 1 - len(there))
    needed = max(number, 1) * size
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"training.output_dir={args.output_dir!r}: {max(number, 1)} checkpoints of {_amount(size)} take "
            f"{_amount(needed)}, {_amount(free)} are free; set save_total_limit, raise save_steps, or take another disk"
        )


def checkpoint_bytes(model: nn.Module, optimizer, args: HfxTrainingArguments, *, engine: str) -> int:
    """About how many bytes a checkpoint takes: the weights that are saved, the optimizer's states, the average."""
    is_adapter = hasattr(model, "peft_config")
    whole = [
        (math.prod(getattr(p, "ds_shape", p.shape)), p.element_size(), p.requires_grad) for p in model.parameters()
    ]
    weights = sum(number * width for number, width, trained in whole if trained or not is_adapter)
    trained = [(number, width) for number, width, is_trained in whole if is_trained]
    total = FIXED_BYTES + weights
    if args.ema_decay is not None:
        total += FP32_BYTES * sum(number for number, _ in trained)
    if args.save_only_model:
        return total
    if engine.startswith("deepspeed"):  # its own copy of the weights, and in fp32 master weights and two states
        return total + weights + 3 * FP32_BYTES * sum(number for number, _ in trained)
    groups = getattr(optimizer, "param_groups", [])
    # of weights in parts every process writes what it holds
    writers = args.world_size if engine == "sharded" else 1
    return total + writers * sum(
        _num_states(group) * sum(_held(p) * p.element_size() for p in group["params"]) for group in groups
    )


def _held(parameter: torch.Tensor) -> int:
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def _num_states(group: dict) -> int:
    """Tensors of a parameter's size that an optimizer keeps of each: two, but for plain SGD and momentum alone."""
    if group.get("use_muon"):
        return 1
    if "betas" in group or "momentum" not in group:
        return 2
    return 1 if group["momentum"] else 0


def _num_saved(args: HfxTrainingArguments, state: TrainerState) -> int:
    """Checkpoints that the steps still to be made will save."""
    left = max(0, state.max_steps - state.global_step)
    if args.save_strategy == SaveStrategy.STEPS and state.save_steps:
        return math.ceil(left / state.save_steps)
    if args.save_strategy == SaveStrategy.EPOCH and state.max_steps:
        return math.ceil(left / state.max_steps * state.num_train_epochs)
    return 0 if args.save_strategy == SaveStrategy.NO else 1  # when a best one comes isn't known


def _size_of(there: list[Path]) -> int | None:
    """Of the newest checkpoint that is there already: better than any estimate."""
    for folder in reversed(there):
        try:
            return read_manifest(folder).num_bytes
        except BrokenCheckpointError:
            continue
    return None


def _amount(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
