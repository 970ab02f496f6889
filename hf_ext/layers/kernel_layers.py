"""Our layers with Triton's kernels, in the form in which the library `kernels` swaps a layer's forward for another's.

A class here has no state and no constructor: its forward is bound to the layer that it stands in for and reads that one's
weights and options. What a kernel doesn't take (another dtype, tensors elsewhere, a compiler that looks on) the layer
computes itself. The file goes into a kernel repository as `layers.py`; the names are those that `registry.py` maps.
"""

import torch
from torch import nn

from hf_ext.ops.kernel_choice import kernels_reach


class HfxRMSNorm(nn.Module):
    """Stands in for `RMSNorm`."""

    weight: nn.Parameter
    eps: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        if not kernels_reach(hidden_states, self.weight):
            return type(self).forward(self, hidden_states)
        from hf_ext.ops.triton.triton_norms import triton_rms_norm

        return triton_rms_norm(hidden_states, self.weight, eps=self.eps)


class HfxUnitOffsetRMSNorm(nn.Module):
    """Stands in for `UnitOffsetRMSNorm`."""

    weight: nn.Parameter
    eps: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        if not kernels_reach(hidden_states, self.weight):
            return type(self).forward(self, hidden_states)
        from hf_ext.ops.triton.triton_norms import triton_rms_norm

        return triton_rms_norm(hidden_states, self.weight, eps=self.eps, unit_offset=True)


class HfxLayerNorm(nn.Module):
    """Stands in for `LayerNorm`, with and without bias."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    eps: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        if not kernels_reach(hidden_states, self.weight, self.bias):
            return type(self).forward(self, hidden_states)
        from hf_ext.ops.triton.triton_norms import triton_layer_norm

        return triton_layer_norm(hidden_states, self.weight, self.bias, eps=self.eps)


class HfxGatedActivation(nn.Module):
    """Stands in for `GatedActivation`, of those activations that have a kernel."""

    name: str

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """(..., I), (..., I) -> (..., I)."""
        name = "gelu_pytorch_tanh" if self.name == "gelu_new" else self.name
        if name not in ("silu", "gelu", "gelu_pytorch_tanh", "relu") or not kernels_reach(gate, up):
            return type(self).forward(self, gate, up)
        from hf_ext.ops.triton.triton_gated import triton_gated

        return triton_gated(name, gate, up)


class HfxRotation(nn.Module):
    """Stands in for `Rotation`, both conventions, whole heads and parts of them."""

    interleaved: bool

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, T, D), (B, K, T, D), cos and sin (B or 1, T, R) -> queries and keys, turned."""
        if cos.requires_grad or sin.requires_grad or not kernels_reach(query, key):
            return type(self).forward(self, query, key, cos, sin)
        from hf_ext.ops.triton.triton_rotary import triton_rotary

        return triton_rotary(query, key, cos, sin, self.interleaved)
