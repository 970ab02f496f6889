"""Several matrices that read the same states, multiplied as one: [W_1; W_2; …] x is W_1 x, W_2 x, … in one product.

A product of one row takes a call, the states read once more and a part of the threads' start, whatever it multiplies; query,
key and value, or gate and up, can share these. For that they must lie one after another in memory, and that is all that
`lay_side_by_side` does: each layer keeps its own parameter, a view of one storage, under its own name. So what is saved,
loaded, counted, trained, given an adapter or quantized is what it was, and where one of them has left its place (a copy to
another dtype, an adapter around it, a gradient to be computed), each is multiplied by itself.
"""

from collections.abc import Sequence

import torch
from torch import nn

from hf_ext.layers.plain_linear import why_not_plain
from hf_ext.ops.matrix_product import linear


def joint_product(x: torch.Tensor, layers: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """Each layer's output for (..., d): in one product where the matrices lie side by side and no gradient is wanted.

    Under `torch.compile` too each is multiplied by itself: a compiler sees no addresses, and joins loops on its own.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.jit.is_tracing():
        return [layer(x) for layer in layers]
    weight = _joint([layer._parameters.get("weight") for layer in layers])
    if weight is None or any(why_not_plain(layer) for layer in layers):
        return [layer(x) for layer in layers]
    biases, bias = [layer._parameters.get("bias") for layer in layers], None
    if any(own is not None for own in biases):
        bias = _joint(biases)
        if bias is None:
            return [layer(x) for layer in layers]
    return linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


@torch.no_grad()
def lay_side_by_side(layers: Sequence[nn.Module]) -> None:
    """Move the layers' weights, and their biases, into one storage each, in this order; their values stay.

    All must be plain, of one dtype, device and input, and have a bias or none of them: `why_not_joint`.
    """
    for name in ("weight", "bias"):
        parameters = [getattr(layer, name) for layer in layers]
        if parameters[0] is None:
            continue
        together = torch.cat([parameter.data for parameter in parameters])
        parts = together.split([parameter.shape[0] for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part


@torch.no_grad()
def lay_apart(layers: Sequence[nn.Module]) -> None:
    """Undo `lay_side_by_side`: a storage for each parameter. Nothing happens to layers that lie apart already."""
    for name in ("weight", "bias"):
        parameters = [layer._parameters.get(name) for layer in layers]
        if are_joint(layers) and parameters[0] is not None:
            for parameter in parameters:
                parameter.data = parameter.data.clone()


def are_joint(layers: Sequence[nn.Module]) -> bool:
    """Whether the layers' weights lie side by side."""
    return _joint([layer._parameters.get("weight") for layer in layers]) is not None


def why_not_joint(layers: Sequence[nn.Module]) -> str | None:
    """Which of the layers can't be joined to the others, by its place among them, and why; None where all can."""
    first = layers[0]
    for place, layer in enumerate(layers):
        reason = why_not_plain(layer)
        if reason is None and (layer.bias is None) != (first.bias is None):
            reason = "has no bias where another has one" if layer.bias is None else "has a bias where another has none"
        if reason is None and (layer.weight.dtype, layer.weight.device) != (first.weight.dtype, first.weight.device):
            reason = f"is {layer.weight.dtype} on {layer.weight.device}, another isn't"
        if reason is not None:
            return f"{place}: {reason}"
    return None


def _joint(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """All parts as one tensor over the memory in which they follow one another; None where they don't."""
    first = parts[0]
    if any(type(part) is not nn.Parameter for part in parts) or first.device.type == "meta":
        return None
    rest, address, size = first.shape[1:], first.data_ptr(), first.element_size()
    for part in parts:
        if (
            part.data_ptr() != address
            or part.dtype != first.dtype
            or part.shape[1:] != rest
            or not part.is_contiguous()
        ):
            return None
        address += part.numel() * size
    storage = first.untyped_storage()
    if address > storage.data_ptr() + storage.nbytes():  # neighbours by chance
        return None
    return first.detach().as_strided((sum(part.shape[0] for part in parts), *rest), first.stride())
