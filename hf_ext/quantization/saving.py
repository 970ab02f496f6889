"""A quantized model as a folder: config, safetensors, and a small JSON that names the method. No pickle.

config.json  generation_config.json  model.safetensors  quantization.json  (and the tokenizer's files)
"""

import copy
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.models.configuration_choices import check_choice
from hf_ext.quantization.method import Method
from hf_ext.quantization.methods import METHODS, find_method
from hf_ext.registry import FAMILIES


DESCRIPTION = "quantization.json"
WEIGHTS = "model.safetensors"


def save_quantized(
    model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Save what `quantize` made. The folder appears whole or not at all.

    Raises:
        ValueError: a folder that exists, or a model that `quantize` hasn't made.
    """
    folder = Path(folder)
    check_new_folder(folder)
    made = getattr(model, "quantized_with", None)
    if made is None:
        raise ValueError(
            f"model: this {type(model).__name__} isn't quantized; use save_pretrained, or quantize it first"
        )
    method = METHODS[made["method"]]
    tensors, texts = method.tensors(model, made["layers"])
    tensors, shared = _without_shared(tensors)
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():  # of a save that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        _write(
            model,
            partial,
            tokenizer,
            tensors,
            {**made, "shared": shared, "texts": texts, "versions": _versions(method)},
        )
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    model: PreTrainedModel, folder: Path, tokenizer, tensors: dict[str, torch.Tensor], description: dict
) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder, bundle=False)  # its code reads whole weights, these are read by `load_quantized`
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _versions(method: Method) -> dict[str, str]:
    return {name: version(name) for name in ("hf-ext", "torch", *([method.package] if method.package else []))}


def check_new_folder(folder: str | Path) -> None:
    """Raises ValueError, one line, for a folder that exists."""
    if Path(folder).exists():
        raise ValueError(f"folder={str(folder)!r}: exists already; name another one, or remove it")


def load_quantized(folder: str | Path) -> PreTrainedModel:
    """The model as it was saved, in eval mode: the same logits, bit for bit.

    Raises:
        ValueError: a folder without a quantized model, a method whose library isn't installed, or weights that aren't its.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"folder={str(folder)!r}: holds no quantized model (no {DESCRIPTION}); load it with an Auto class, or "
            "quantize it first"
        )
    made = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    method = find_method(made["method"], to_load=True)
    config = AutoConfig.from_pretrained(folder)
    model = model_class_of(config)._from_config(config, dtype=config.dtype).eval()
    method.prepare(model, made["layers"], made["options"])
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    tensors |= {alias: tensors[name] for alias, name in made["shared"].items()}
    try:
        method.load(model, made["layers"], tensors, made["texts"])
    except RuntimeError as error:  # load_state_dict lists every name on a line of its own
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"folder={str(folder)!r}: its weights aren't those of its config: {first}") from None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(folder)
    model.quantized_with = {name: made[name] for name in ("method", "options", "layers")}
    return model.eval()


def model_class_of(config) -> type[PreTrainedModel]:
    """Our class that a saved configuration names.

    Raises:
        ValueError: a configuration that isn't ours, or names no class of its family.
    """
    if type(config) not in FAMILIES:
        raise ValueError(f"model_type={config.model_type!r}: none of hf_ext's; use a folder of an hfx_ model")
    classes = {model_class.__name__: model_class for _, model_class in FAMILIES[type(config)]}
    name = (config.architectures or [None])[0]
    check_choice("architectures", name, classes)
    return classes[name]


def _without_shared(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and under which name another one is kept: safetensors refuses to write memory twice."""
    kept: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            shared[name] = first[place]
            continue
        first[place] = name
        kept[name] = tensor.detach().cpu().contiguous()
    return kept, shared
