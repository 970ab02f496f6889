"""Normalisation layers over the last dimension. Statistics are fp32 whatever the input is; the output keeps its dtype."""

import torch
from torch import nn

from hf_ext.ops.kernel_choice import takes_triton
from hf_ext.ops.recomputed import recomputed


def _with_unit_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps), in one new tensor where autograd doesn't look."""
    squares = x.square()
    scale = torch.rsqrt(squares.mean(dim=-1, keepdim=True) + eps)
    return x * scale if _records() else torch.mul(x, scale, out=squares)


def _records() -> bool:
    """Whether a gradient or a compiler wants to see each step, so that none may overwrite another."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x²) + eps); Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        if takes_triton(hidden_states, self.weight):
            from hf_ext.ops.triton.triton_norms import triton_rms_norm

            return triton_rms_norm(hidden_states, self.weight, eps=self.eps)
        return recomputed(self._normalize, hidden_states, self.weight)

    def _normalize(self, hidden_states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.promote_types(dtype, torch.float32))
        x = _with_unit_rms(x, self.eps).to(dtype)
        return weight * x if _records() or x.dtype != weight.dtype else x.mul_(weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class UnitOffsetRMSNorm(nn.Module):
    """y = (1 + weight) * x / sqrt(mean(x²) + eps), all of it in fp32; Gemma Team 2024, arXiv 2403.08295.

    The weight starts at 0, so that weight decay pulls the factor towards 1.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        if takes_triton(hidden_states, self.weight):
            from hf_ext.ops.triton.triton_norms import triton_rms_norm

            return triton_rms_norm(hidden_states, self.weight, eps=self.eps, unit_offset=True)
        return recomputed(self._normalize, hidden_states, self.weight)

    def _normalize(self, hidden_states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        x = _with_unit_rms(x, self.eps)
        return ((1 + weight.to(x.dtype)) * x).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias; Ba et al. 2016, arXiv 1607.06450, eq. 3.

    Args:
        dim: size of the last dimension.
        eps: added to the (biased) variance.
        bias: whether there is one.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim)."""
        return nn.functional.layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


NORMS: dict[str, type[nn.Module]] = {
    "rmsnorm": RMSNorm,
    "rmsnorm_unit_offset": UnitOffsetRMSNorm,
    "layernorm": LayerNorm,
}
