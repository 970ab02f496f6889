"""Several processes as one run: what they were asked to be, the model split over them, and the proof that it is.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/pretraining/train.py recipe.yaml

Launchers and engines fall back without a word: accelerate's FSDP becomes DDP on a CPU, `accelerate launch --cpu` starts one
process whatever it is asked for, a tensor-parallel size that nothing reads trains whole copies on one batch. Here each of
these is one line and the end of the run, before its first step.

DDP and DeepSpeed's ZeRO wrap the model when training begins. FSDP2 and tensor parallelism are transformers'
`DistributedConfig`: the model is split as it is loaded, by the plans of its configuration (`models/parallel_plans.py`).
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import ParallelismConfig
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from hf_ext.models.parallel_plans import why_not_split
from hf_ext.training.deepspeed_ops import remove_stale_locks


logger = logging.get_logger(__name__)


def launched_sizes(tp_size: int | None, fsdp_size: int | None) -> tuple[int, int]:
    """(tp_size, fsdp_size): as given, else as the `parallelism_config` of accelerate's launch file says, else 1.

    An fsdp_size of -1 is all processes that tensor parallelism leaves.

    Raises:
        ValueError: below 1.
    """
    in_file = _is_set("ACCELERATE_USE_PARALLELISM_CONFIG")
    if tp_size is None:
        tp_size = int(os.environ["PARALLELISM_CONFIG_TP_SIZE"]) if in_file else 1
    if fsdp_size is None:
        fsdp_size = int(os.environ["PARALLELISM_CONFIG_DP_SHARD_SIZE"]) if in_file else 1
    if tp_size < 1:
        raise ValueError(f"tp_size={tp_size}: must be at least 1 process")
    if fsdp_size == -1:
        fsdp_size = max(1, int(os.environ.get("WORLD_SIZE", 1)) // tp_size)
    if fsdp_size < 1:
        raise ValueError(f"fsdp_size={fsdp_size}: must be at least 1 process, or -1 for all that tp_size leaves")
    return tp_size, fsdp_size


def check_processes(args) -> None:
    """Raises ValueError where the processes that were launched are not those that train together.

    Args:
        args: `HfxTrainingArguments`, their devices set up.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"WORLD_SIZE={launched}: each process would train a model of its own, for there is no accelerator here; set "
            "training.use_cpu: true"
        )
    # what accelerate's launcher of one process sets, and sets only where it was asked for more
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']}: accelerate was asked for several processes and has started one, as "
            "its --cpu does; give a --config_file of recipes/accelerate instead, and set training.use_cpu: true"
        )
    if args.tp_size * args.fsdp_size > 1:
        _check_split(args)
    if (args.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED")) and args.local_process_index == 0:
        for name in remove_stale_locks():
            logger.warning(
                f"{name}: removed the lock of a compile that was killed, for which this run would have waited"
            )


def _check_split(args) -> None:
    sizes = f"tp_size={args.tp_size}, fsdp_size={args.fsdp_size}"
    if args.tp_size * args.fsdp_size != args.world_size:
        raise ValueError(
            f"{sizes}: is for {args.tp_size * args.fsdp_size} processes, there are {args.world_size}; their product must be "
            "the number of processes, set it or launch as many"
        )
    if args.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(f"{sizes}: not beside DeepSpeed, which has its own; launch with one of both")
    if args.fsdp or _is_set("ACCELERATE_USE_FSDP"):
        raise ValueError(f"{sizes}: not beside accelerate's fsdp; launch with recipes/accelerate/fsdp2.yaml alone")
    if args.save_on_each_node:
        raise ValueError(
            f"save_on_each_node=True: not with {sizes}, of which each node has a part; set it to false, and take an "
            "output_dir that all nodes share"
        )
    if args.matrix_optimizer is not None:
        raise ValueError(
            f"matrix_optimizer={args.matrix_optimizer!r}: not with {sizes}, where nobody has a whole matrix; leave it out"
        )
    if args.ema_decay is not None:
        raise ValueError(f"ema_decay={args.ema_decay}: not with {sizes}, whose weights are in parts; leave it out")


def check_adapter(method: str, args) -> None:
    """Raises ValueError for an adapter on weights that no process has whole: it couldn't be added into them."""
    plugin = args.deepspeed_plugin
    zero3, autotp = plugin is not None and plugin.zero_stage == 3, autotp_size(plugin)
    if zero3 or autotp > 1 or args.tp_size * args.fsdp_size > 1:
        how = "ZeRO 3" if zero3 else f"tp_size={args.tp_size}, fsdp_size={args.fsdp_size}"
        how = f"autotp_size={autotp}" if autotp > 1 else how
        raise ValueError(
            f"adapter.method={method!r}: not with {how}, where no process has the weights it changes; launch with ddp.yaml "
            "or zero2.yaml"
        )


def autotp_size(plugin) -> int:
    """In how many parts DeepSpeed is asked to divide each matrix, by `tensor_parallel` in its JSON.

    Args:
        plugin: accelerate's `DeepSpeedPlugin`, or None without DeepSpeed.
    """
    asked = {} if plugin is None else plugin.deepspeed_config.get("tensor_parallel", {})
    return asked.get("autotp_size", 1)


def check_divisible(config: PretrainedConfig, tp_size: int) -> None:
    """Raises ValueError where tensor parallelism can't divide what a configuration asks to be divided."""
    part = None if tp_size == 1 else why_not_split(config, tp_size)
    if part is not None:
        raise ValueError(f"tp_size={tp_size}: can't divide model.{part}; choose a divisor of it")


def check_tied_rows(model: PreTrainedModel, tp_size: int, fsdp_size: int) -> None:
    """Raises ValueError where an embedding that the head shares would be trained in two copies.

    FSDP2 fills up a part that is smaller than the others, in a copy of its own for each of two modules that it wraps apart;
    the optimizer's steps reach one of them (torch 2.13: the losses of a tied model of 97 words are off by 6e-3 from the
    second step on).
    """
    head = model.get_output_embeddings()
    if fsdp_size == 1 or head is None or head.weight is not model.get_input_embeddings().weight:
        return
    rows, parts = head.weight.shape[0], tp_size * fsdp_size
    if rows % parts:
        raise ValueError(
            f"fsdp_size={fsdp_size}: can't divide the {rows} rows of the embedding that the head shares, one part would be "
            f"trained in two copies; set model.tie_word_embeddings: false, or take a vocabulary of a multiple of {parts}"
        )


def split_model(model: PreTrainedModel, args) -> PreTrainedModel:
    """The model with its weights divided over the processes as `args.tp_size` and `args.fsdp_size` say; itself for 1 and 1.

    The first process of each node writes the whole weights beside the run's output, each process reads its part, and they
    are deleted. What it is loaded with are this process's weights, so all must have drawn the same.
    """
    if args.tp_size * args.fsdp_size == 1:
        return model
    check_divisible(model.config, args.tp_size)
    check_tied_rows(model, args.tp_size, args.fsdp_size)
    folder = Path(args.output_dir) / f".whole_{os.environ.get('GROUP_RANK', 0)}"
    if args.local_process_index == 0:
        model.save_pretrained(folder)
    torch.distributed.barrier()
    split = _read_parts(model, folder, args)
    torch.distributed.barrier()
    if args.local_process_index == 0:
        shutil.rmtree(folder)
    split.config._name_or_path = model.config._name_or_path
    return split.train(model.training)


def load_into_parts(model: PreTrainedModel, folder: str | Path, args) -> None:
    """Have a model that `split_model` divided hold the weights and buffers that were saved, whole, in `folder`."""
    saved = _read_parts(model, folder, args).state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            _own(tensor).copy_(_own(saved[name]))


def gathered_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model that is in parts, whole, in the first process's host memory; {} in others. All take part.

    One of two that are tied is enough, as in what whole models save; transformers gathers both.
    """
    own = model.state_dict(keep_vars=True)
    tied = {name for name, source in model.all_tied_weights_keys.items() if own.get(name) is own.get(source)}
    is_first = torch.distributed.get_rank() == 0
    whole = model.gather_sharded_state_dict_for_save(
        model, model.state_dict(), model.config.distributed_config, save_on_this_rank=is_first
    )
    return {name: tensor for name, tensor in whole.items() if name not in tied} if is_first else {}


@contextmanager
def as_whole(model: PreTrainedModel):
    """Inside, `save_pretrained` with gathered weights is the calling process's own affair: it waits for no other."""
    asked, model.config.distributed_config = model.config.distributed_config, None
    try:
        yield
    finally:
        model.config.distributed_config = asked


def _read_parts(model: PreTrainedModel, folder: str | Path, args) -> PreTrainedModel:
    return plain_class(model).from_pretrained(
        folder,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        distributed_config=DistributedConfig(tp_size=args.tp_size, fsdp_size=args.fsdp_size),
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load_whole(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """What was saved of a model that is in parts, whole on each process.

    It ends transformers' mode of ZeRO 3, in which every model would be divided, and generate wait for other processes.
    """
    unset_hf_deepspeed_config()
    options = {"attn_implementation": model.config._attn_implementation, "dtype": model.dtype}
    return plain_class(model).from_pretrained(folder, **options)


def parallelism(args) -> ParallelismConfig | None:
    """What accelerate has to know of `tp_size` and `fsdp_size`, to give each process its batches."""
    if args.tp_size * args.fsdp_size == 1:
        return None
    return _Parallelism(tp_size=args.tp_size, dp_shard_size=args.fsdp_size)


class _Parallelism(ParallelismConfig):
    """accelerate's, on a CPU too, where it refuses for want of a name for several processes there."""

    def _validate_accelerator(self, accelerator) -> None:
        if accelerator.distributed_type != DistributedType.MULTI_CPU:
            super()._validate_accelerator(accelerator)


def is_split(model: nn.Module) -> bool:
    """Whether no process has all the weights: FSDP2, tensor parallelism (DeepSpeed's too), ZeRO 3."""
    parts_of_deepspeed = ("ds_id", "tensor_model_parallel")
    return any(
        isinstance(p, DTensor) or any(getattr(p, mark, False) is not False for mark in parts_of_deepspeed)
        for p in model.parameters()
    )


def plain_class(model: nn.Module) -> type[nn.Module]:
    """The model's class as it was written: FSDP2 gives it one of its own."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def check_engine(trainer) -> None:
    """Raises ValueError where the engine that will train is not the one that was asked for; called before the first step.

    Args:
        trainer: a Trainer whose model is wrapped and whose optimizer is made.
    """
    args, model = trainer.args, trainer.model
    wrapped = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)  # within torch.compile's
    if args.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"):
        _check_deepspeed(trainer)
    elif args.fsdp or _is_set("ACCELERATE_USE_FSDP"):
        if not any(isinstance(p, DTensor) for p in wrapped.parameters()):
            raise ValueError(
                "fsdp: no parameter is divided, each process trains a whole copy (on a CPU accelerate's FSDP is DDP); "
                "launch with recipes/accelerate/fsdp2.yaml, or with ddp.yaml"
            )
    elif args.tp_size * args.fsdp_size > 1:
        _check_placements(model, args)
        check_tied_rows(model, args.tp_size, args.fsdp_size)
    elif args.world_size > 1 and not isinstance(wrapped, nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"{args.world_size} processes: the model is a {type(wrapped).__name__}, whose gradients nobody "
            "would add up; launch with a file of recipes/accelerate"
        )


def _check_placements(model: nn.Module, args) -> None:
    """That some matrix really lies in as many parts as each size says."""
    parts = {"tp": 1, "fsdp": 1}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            for name, placement in zip(mesh.mesh_dim_names or (), parameter.placements, strict=False):
                if name in parts and not placement.is_replicate():
                    parts[name] = mesh.size(mesh.mesh_dim_names.index(name))
    for name, asked in (("tp", args.tp_size), ("fsdp", args.fsdp_size)):
        if parts[name] != asked:
            raise ValueError(
                f"{name}_size={asked}: the weights are in {parts[name]} part{'s' if parts[name] > 1 else ''}, so it has no "
                "effect; build the model with split_model (recipes do), or leave it out"
            )
    summed = model.config.base_model_tp_plan or {}
    if args.tp_size > 1 and args.gradient_accumulation_steps > 1:
        names = [name for name, how in summed.items() if how == "replicated_with_grad_allreduce"]
        if names:  # transformers adds up what has been added up already
            raise ValueError(
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: with tp_size={args.tp_size} the gradients "
                f"of {names[0]} would be counted again in each pass; set it to 1, or the model's qk_norm and value_residual "
                "to none"
            )


def _check_deepspeed(trainer) -> None:
    engine, args = trainer.model_wrapped, trainer.args
    if not hasattr(engine, "zero_optimization_stage"):
        raise ValueError(
            f"deepspeed: the model is a {type(engine).__name__}, DeepSpeed is not at work; install it and launch with "
            "recipes/accelerate/zero1.yaml, zero2.yaml or zero3.yaml"
        )
    plugin = trainer.accelerator.state.deepspeed_plugin
    asked = plugin.zero_stage
    if engine.zero_optimization_stage() != asked:
        raise ValueError(f"zero_stage={asked}: DeepSpeed is at stage {engine.zero_optimization_stage()}; mend its JSON")
    if autotp_size(plugin) > 1 and not is_split(trainer.model):
        raise ValueError(
            f"autotp_size={autotp_size(plugin)}: DeepSpeed has divided no matrix, each process trains a whole copy on the "
            "same rows; launch with recipes/accelerate/tp.yaml"
        )
    if args.matrix_optimizer is not None and (asked or autotp_size(plugin) > 1):
        how = f"ZeRO {asked}, which gives an optimizer flat parts of all matrices together"
        how = how if asked else f"autotp_size={autotp_size(plugin)}, where nobody has a whole matrix"
        raise ValueError(
            f"matrix_optimizer={args.matrix_optimizer!r}: not under {how}; leave it out, or launch with ddp.yaml"
        )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
