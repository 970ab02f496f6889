"""Which run a checkpoint belongs to: everything that, if it were another, would make another run of what goes on.

A fingerprint is groups of fields, plain JSON; a group may be allowed to differ by its name (`--allow_change`).

    model       the configuration's fields          parameters  names and shapes; these may never differ
    adapter     of an adapter, and a sample of the weights under it
    data        the rows to train on                batch       rows a batch, accumulation, workers
    processes   how many, by which engine           precision   bf16, fp16, fp8
    kernels     attention, compiled or not          seed        of the draws, of the order of rows
    optimizer   rates, schedule, average            states      which optimizer; it may never differ
    versions    of torch, transformers, …           sections    of a recipe, each allowed by its own name
    split       in how many parts the weights lie by which engine of transformers; it may never differ

How long to train, when to log, evaluate and save are not in it.
"""

import hashlib
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.checkpoints.fingerprint_groups import ARGUMENTS, CHANGEABLE


# what transformers writes into a config beside the architecture, or the Trainer takes over from the tokenizer
NOT_ARCHITECTURE = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
PACKAGES = ("hf-ext", "torch", "transformers", "accelerate", "datasets", "peft", "deepspeed")
# rows of a data set that are looked at, evenly spread; of smaller ones all
NUM_ROWS = 256
# values of each frozen weight that are looked at
NUM_VALUES = 64


def run_fingerprint(
    model: nn.Module,
    args: HfxTrainingArguments,
    dataset,
    *,
    engine: str,
    sections: Mapping[str, Mapping] | None = None,
) -> dict[str, dict]:
    """The groups of the file's head.

    Args:
        model: as it is trained, with its adapter if it has one.
        dataset: what is trained on, or None.
        engine: "one process", "ddp", "fsdp", "sharded", "deepspeed zero 2".
        sections: of the recipe, those that say what is trained; "data" counts where the rows can't be looked at. None
            where there is no recipe.
    """
    data = dict(sections or {}).get("data", {})
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = getattr(model, "peft_config", None) if inner is not model else None
    found = {
        "model": model_fields(getattr(inner, "config", None)),
        "parameters": _parameters(model),
        "adapter": {} if adapters is None else _adapter(model, adapters),
        "data": _rows(dataset) if _has_rows(dataset) else {"stream": True, **data},
        "split": _split(args),
        "processes": {"world_size": args.world_size, "devices": args.n_gpu, "engine": engine},
        "kernels": {
            "attention": getattr(getattr(inner, "config", None), "_attn_implementation", None),
            "device": args.device.type,
            "torch_compile": args.torch_compile,
        },
        "versions": {name: _version(name) for name in PACKAGES},
        **{
            group: {name: getattr(args, name) for name in names if hasattr(args, name)}
            for group, names in ARGUMENTS.items()
        },
    }
    if sections is not None:
        found["sections"] = {name: section for name, section in sections.items() if name != "data"}
    if args.auto_find_batch_size:  # what was found is in the Trainer's state
        del found["batch"]["per_device_train_batch_size"]
    return plain(found)


def model_fields(config) -> dict:
    """What a configuration says of the architecture; {} of a model without one."""
    fields = {} if config is None else config.to_dict()
    return plain({name: value for name, value in fields.items() if name not in NOT_ARCHITECTURE})


def difference(
    name: str, saved: Mapping[str, Mapping], now: Mapping[str, Mapping], allowed: Collection[str] = ()
) -> str | None:
    """The first thing that is another now, as one line with what to do; None where nothing is.

    Args:
        name: of the checkpoint. saved, now: fingerprints; of `now` only the groups that it has are compared.
        allowed: groups that may differ.
    """
    for group, fields in now.items():
        if group in allowed:
            continue
        before = saved.get(group, {})
        for field in sorted(set(before) | set(fields)):
            is_allowed = group == "sections" and field in allowed
            if not is_allowed and before.get(field) != fields.get(field):
                return _describe(name, group, field, before.get(field), fields.get(field))
    return None


def _describe(name: str, group: str, field: str, before, now) -> str:
    allowed_by = field if group == "sections" else group
    remedy = "set it back, or start anew in another folder"
    if group == "sections" or group in CHANGEABLE:
        remedy += f" (--allow_change {allowed_by} goes on all the same)"
    if group == "parameters":
        return (
            f"model: its parameters have other names or shapes than those of {name}; start anew in another folder, or "
            "with model.path"
        )
    if group == "sections":
        return f"{field}: {now or {}} is not what {name} was trained with, {before or {}}; {remedy}"
    if group == "data" and field in ("rows", "number", "class"):
        return f"data: other rows than {name} was trained on; {remedy}"
    if group == "split":
        whole = "tp_size=1, fsdp_size=1"
        return f"{now or whole}: {name} was trained with {before or whole}; {remedy}"
    if group == "adapter" and field == "base":
        return f"model.path: other weights are under the adapter than under that of {name}; {remedy}"
    if group in ("processes", "kernels", "versions"):
        return f"{field}={now!r}: {name} was trained with {before!r}; {remedy}"
    place = group if group in ("model", "adapter", "data") else "training"
    return f"{place}.{field}={now!r}: {name} was trained with {before!r}; {remedy}"


def plain(value):
    """`value` as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | float | None) or type(value) is str:
        return value
    return plain(value.value) if hasattr(value, "value") else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _parameters(model: nn.Module) -> dict:
    # of what DeepSpeed has split, the whole shape; buffers and tied weights belong to the configuration
    named = [(name, tuple(getattr(p, "ds_shape", p.shape)), p.requires_grad) for name, p in model.named_parameters()]
    return {"number": len(named), "shapes": hashlib.sha256(repr(sorted(named)).encode()).hexdigest()[:16]}


def _split(args: HfxTrainingArguments) -> dict:
    # nothing of whole weights: older fingerprints don't have this group
    is_split = args.tp_size * args.fsdp_size > 1
    return {"sizes": f"tp_size={args.tp_size}, fsdp_size={args.fsdp_size}"} if is_split else {}


def _adapter(model: nn.Module, adapters: Mapping) -> dict:
    left_out = {"base_model_name_or_path", "inference_mode", "peft_version", "revision", "auto_mapping"}
    configs = {name: adapter.to_dict() for name, adapter in adapters.items()}
    configs = {
        name: {field: value for field, value in config.items() if field not in left_out}
        for name, config in configs.items()
    }
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda named: named[0]):
        # of split or quantized weights there is nothing to be had cheaply
        if not parameter.requires_grad and type(parameter) is nn.Parameter and parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            if flat.is_floating_point() and flat.numel():
                places = torch.linspace(0, flat.numel() - 1, min(NUM_VALUES, flat.numel())).long()
                digest.update(name.encode() + flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return {**configs, "base": digest.hexdigest()[:16]}


def _has_rows(dataset) -> bool:
    return dataset is None or (hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset))


def _rows(dataset) -> dict:
    """Number of rows, and a digest of some as they are stored: reading those of a class of one's own might draw."""
    if dataset is None:
        return {}
    number = len(dataset)
    if not isinstance(dataset, datasets.Dataset | list | tuple):
        return {"number": number, "class": type(dataset).__name__}
    places = sorted({round(place) for place in np.linspace(0, max(0, number - 1), min(NUM_ROWS, number))})
    digest = hashlib.sha256()
    if isinstance(dataset, datasets.Dataset):
        digest.update(repr(sorted(dataset.column_names)).encode())
        for row in dataset.with_format("arrow").select(places).iter(batch_size=1):
            digest.update(repr(sorted(row.to_pydict().items())).encode())
    else:
        for place in places:
            _add(dataset[place], digest)
    return {"number": number, "rows": digest.hexdigest()[:16]}


def _add(value, digest) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _add(value[key], digest)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(item, digest)
    elif isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, str | bytes | int | float | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
