"""Our layers with Liger's kernels (Hsu et al. 2024, arXiv 2410.10989), in the form of `kernel_layers.py`.

Liger's own layers can't stand in for ours: its norm writes the gradient of its input over that of its output, which is
wrong where the output is added to the residual stream (post-norm, sandwich, reordered norm), and its feed-forward has no
dropout. Its functions can: only what an option leaves the same goes to them, the rest the layer computes itself.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hf_ext.ops.kernel_choice import kernels_reach


# activations of `GatedActivation` -> which of Liger's functions; its GELU is the tanh approximation
SILU, GELU_TANH = ("silu",), ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class LigerFunctions:
    """Liger's autograd functions, from its package or from its repository on the Hub: the same classes."""

    rms_norm: type[torch.autograd.Function]
    layer_norm: type[torch.autograd.Function]
    silu_mul: type[torch.autograd.Function]
    gelu_mul: type[torch.autograd.Function]
    rope: type[torch.autograd.Function]


def liger_layers(functions: LigerFunctions) -> dict[str, type[nn.Module]]:
    """Name in the mapping of kernels -> a class without state that stands in for our layer of that name."""

    class LigerRMSNorm(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if not _takes(hidden_states, self.weight):
                return type(self).forward(self, hidden_states)
            return functions.rms_norm.apply(hidden_states, self.weight, self.eps, 0.0, "llama", False, None)

    class LigerUnitOffsetRMSNorm(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if not _takes(hidden_states, self.weight):
                return type(self).forward(self, hidden_states)
            return functions.rms_norm.apply(hidden_states, self.weight, self.eps, 1.0, "gemma", False, None)

    class LigerLayerNorm(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if self.bias is None or not _takes(hidden_states, self.weight, self.bias):
                return type(self).forward(self, hidden_states)
            return functions.layer_norm.apply(hidden_states, self.weight, self.bias, self.eps)

    class LigerGatedActivation(nn.Module):
        def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            if self.name in SILU and _takes(gate, up):
                return functions.silu_mul.apply(gate, up)
            if self.name in GELU_TANH and _takes(gate, up):
                return functions.gelu_mul.apply(gate, up)
            return type(self).forward(self, gate, up)

    class LigerRotation(nn.Module):
        def forward(
            self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            whole = cos.shape[-1] == query.shape[-1] == key.shape[-1]
            turns = cos.requires_grad or sin.requires_grad
            if self.interleaved or turns or not whole or not _takes(query, key):
                return type(self).forward(self, query, key, cos, sin)
            # it turns heads where they lie, and what lies there may be someone else's
            query, key = (x.transpose(1, 2).clone(memory_format=torch.contiguous_format) for x in (query, key))
            return functions.rope.apply(query.transpose(1, 2), key.transpose(1, 2), cos, sin)

    return {
        "HfxRMSNorm": LigerRMSNorm,
        "HfxUnitOffsetRMSNorm": LigerUnitOffsetRMSNorm,
        "HfxLayerNorm": LigerLayerNorm,
        "HfxGatedActivation": LigerGatedActivation,
        "HfxRotation": LigerRotation,
    }


def _takes(*tensors: torch.Tensor) -> bool:
    return kernels_reach(*tensors) and all(x.numel() > 0 for x in tensors)
