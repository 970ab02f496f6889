"""Whether a linear layer is nothing but its matrix, so that the matrix may be read instead of the layer being called."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from hf_ext.layers.linear import Linear


def why_not_plain(linear: nn.Module) -> str | None:
    """None where the layer is a plain matrix that may be read directly, else what it is: an adapter on it, a quantized or
    partitioned weight, a hook, would all be passed by."""
    if type(linear) not in (nn.Linear, Linear):
        return f"is a {type(linear).__module__}.{type(linear).__name__}"
    if type(linear.weight) not in (nn.Parameter, torch.Tensor, FakeTensor):
        return f"has a {type(linear.weight).__name__} weight"
    if linear.weight.shape != (linear.out_features, linear.in_features):
        return "has its weight partitioned"
    if linear._forward_pre_hooks or linear._forward_hooks or hasattr(linear, "_hf_hook"):
        return "has hooks on it"
    return None
