"""Experts without an operator of their own, for engines that don't know it: each expert is computed for each token.

What a model's `Experts` compute in one grouped product over the tokens that chose them becomes E plain products over all
tokens, those not chosen weighted by 0: E / k times the arithmetic, and no shape that depends on data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

from hf_ext.layers.mixture_of_experts import Experts


@contextmanager
def dense_experts(module: nn.Module) -> Iterator[None]:
    """While inside, the mixtures in `module` are computed so."""
    found = [inner for inner in module.modules() if isinstance(inner, Experts)]
    for experts in found:
        experts.forward = MethodType(every_expert, experts)
    try:
        yield
    finally:
        for experts in found:
            del experts.forward


def every_expert(
    experts: Experts, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `Experts.forward`: (N, d), chosen and weights (N, k) -> (N, d)."""
    by_expert = hidden_states.new_zeros(hidden_states.shape[0], experts.num_experts)
    by_expert = by_expert.scatter(-1, chosen, weights.to(by_expert.dtype))  # (N, E)
    first = experts.gate_up_proj if experts.gated else experts.up_proj
    x = hidden_states.repeat(experts.num_experts, 1).unflatten(0, (experts.num_experts, -1))  # OpenVINO broadcasts none
    x = torch.bmm(x, first.transpose(1, 2))  # (E, N, 2 I or I)
    x = experts.activation(*x.chunk(2, dim=-1)) if experts.gated else experts.activation(x)
    return (torch.bmm(x, experts.down_proj.transpose(1, 2)) * by_expert.T.unsqueeze(-1)).sum(dim=0)
