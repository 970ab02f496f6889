"""Symmetric quantization: the largest absolute value becomes the largest integer, and zero stays zero.

    scale = max |x| / (2^(bits - 1) - 1)        q = clamp(round(x / scale))        x' = scale * q

Dettmers et al. 2022, arXiv 2208.07339, sec. 2.1; every row of x, (G, n), has a scale of its own, (G, 1). Rounding is to the
nearest integer, halves to the even one, as torch's.
"""

import torch


def absmax_scale(x: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """(G, n) -> (G, 1) positive. A row of zeros gets 1: whatever scale it had, zeros are what comes back."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), torch.ones_like(largest))


def quantize_absmax(x: torch.Tensor, scale: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """(G, n) -> (G, n) int8 in -2^(bits - 1) .. 2^(bits - 1) - 1."""
    return (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)


def dequantize_absmax(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(G, n) int8 -> (G, n) of the scale's dtype."""
    return q.to(scale.dtype) * scale
