"""Affine quantization: the range from the smallest to the largest value becomes all integers that the bits can tell apart.

    scale = (high - low) / (2^bits - 1)         Z = round(-low / scale)
    q = clamp(round(x / scale) + Z)             x' = scale * (q - Z)

Jacob et al. 2018, arXiv 1712.05877, eq. 1, and sec. 3 for the range, which always holds zero: zero then is an integer, Z,
and padding with zeros costs no error. Rows of x, (G, n), have a scale and a zero point each, (G, 1).
"""

import torch


def zero_point_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(G, n) -> low <= 0 and high >= 0, (G, 1) each."""
    return x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)


def zero_point_scale(low: torch.Tensor, high: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, of the range's dtype, and zero point, uint8, of the ranges' shape. A range of nothing gets the scale 1."""
    steps = 2**bits - 1
    scale = torch.where(high > low, (high - low) / steps, torch.ones_like(high))
    return scale, (-low / scale).round().clamp(0, steps).to(torch.uint8)


def quantize_zero_point(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """(G, n) -> (G, n) uint8 in 0 .. 2^bits - 1."""
    return ((x / scale).round() + zero_point).clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize_zero_point(q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """(G, n) uint8 -> (G, n) of the scale's dtype."""
    return (q.to(scale.dtype) - zero_point.to(scale.dtype)) * scale
