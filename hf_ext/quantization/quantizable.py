"""Which layers of a model are quantized, and which models can't be."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from hf_ext.layers.plain_linear import why_not_plain
from hf_ext.models.pretrained_model import HfxPreTrainedModel


def quantizable_layers(model: PreTrainedModel, exclude: Iterable[str] = ()) -> list[str]:
    """Names of the linear layers in the body's stacks. Embeddings, norms and heads keep their floats: an embedding is
    read by rows, and errors of a head go straight into the logits.

    Args:
        exclude: last parts of names that are left out too, such as "o_proj".

    Raises:
        ValueError: a model that isn't ours, experts, a layer that isn't a plain matrix, a name that is no layer's.
    """
    if not isinstance(model, HfxPreTrainedModel):
        raise ValueError(
            f"model: a {type(model).__name__} is none of hf_ext's; quantize it with its own library, or load an hfx_ model"
        )
    if getattr(model.config, "num_experts", 0):
        raise ValueError(
            f"num_experts={model.config.num_experts}: the experts' stacked matrices are no linear layers and would stay "
            "floats; use a model without experts"
        )
    body = model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    found = {f"{prefix}{name}": layer for name, layer in body.named_modules() if isinstance(layer, nn.Linear)}
    ends = {name.rsplit(".", 1)[-1] for name in found}
    for name in exclude:
        if name not in ends:
            raise ValueError(f"exclude: {name!r} is no linear layer here; there are {', '.join(sorted(ends))}")
    chosen = {name: layer for name, layer in found.items() if name.rsplit(".", 1)[-1] not in set(exclude)}
    for name, layer in chosen.items():
        obstacle = why_not_plain(layer)
        if obstacle is not None:
            raise ValueError(f"model: its {name} {obstacle}; quantize the plain model, with adapters merged into it")
    if not chosen:
        raise ValueError("model: has no linear layer left to quantize; was it quantized already?")
    return list(chosen)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the dotted name is."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
