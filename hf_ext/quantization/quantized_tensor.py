"""A matrix as integers and scales: how it is quantized (`Quantization`) and what comes of it (`QuantizedTensor`).

O output channels, I inputs, G groups of n numbers that share a scale.
"""

from dataclasses import dataclass

import torch

from hf_ext.models.configuration_choices import check_choice
from hf_ext.quantization.absmax import absmax_scale, dequantize_absmax, quantize_absmax
from hf_ext.quantization.grouping import GRANULARITIES, in_groups
from hf_ext.quantization.packed_bits import PACKED, pack_bits, unpack_bits
from hf_ext.quantization.zero_point import (
    dequantize_zero_point,
    quantize_zero_point,
    zero_point_range,
    zero_point_scale,
)


BITS = (2, 4, 8)
SCHEMES = ("absmax", "zero_point")


@dataclass(frozen=True)
class Quantization:
    """How a matrix is quantized.

    Args:
        bits: 8, 4 or 2. scheme: "absmax" (symmetric) or "zero_point" (affine).
        granularity: "tensor", "channel" or "group". group_size: inputs that share a scale; with "group" only.

    Raises:
        ValueError: one line, for what there isn't.
    """

    bits: int = 8
    scheme: str = "absmax"
    granularity: str = "channel"
    group_size: int | None = None

    def __post_init__(self):
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: must be one of {', '.join(map(str, BITS))}")
        check_choice("scheme", self.scheme, SCHEMES)
        check_choice("granularity", self.granularity, GRANULARITIES)

    @property
    def is_packed(self) -> bool:
        return self.bits in PACKED


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers and what turns them back into numbers.

    Attributes:
        integers: (G, n) int8 (absmax) or uint8 (zero_point) of 8 bits; of fewer bits packed, (G, ceil(n * bits / 8)) uint8,
            those of absmax moved by 2^(bits - 1) so that none is negative.
        scale: (G, 1). zero_point: (G, 1) uint8; None with absmax.
        shape: (O, I). how: as it was quantized.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    shape: torch.Size
    how: Quantization

    def unpacked(self) -> torch.Tensor:
        """The integers themselves, (G, n), int8 (absmax) or uint8 (zero_point)."""
        if not self.how.is_packed:
            return self.integers
        q = unpack_bits(self.integers, self.how.bits, self.shape.numel() // self.scale.shape[0])
        return q.to(torch.int8) - 2 ** (self.how.bits - 1) if self.zero_point is None else q

    def dequantize(self) -> torch.Tensor:
        """(O, I) of the scale's dtype."""
        q = self.unpacked()
        if self.zero_point is None:
            return dequantize_absmax(q, self.scale).reshape(self.shape)
        return dequantize_zero_point(q, self.scale, self.zero_point).reshape(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of the integers, scales and zero points."""
        tensors = [self.integers, self.scale, *([] if self.zero_point is None else [self.zero_point])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def quantize_tensor(weight: torch.Tensor, how: Quantization) -> QuantizedTensor:
    """(O, I) floats -> integers.

    Raises:
        ValueError: NaN or infinite numbers, or a group size that doesn't divide I.
    """
    if not bool(weight.isfinite().all()):
        raise ValueError(
            f"weight: {tuple(weight.shape)} holds NaN or infinity, which no integer stands for; mend it first"
        )
    x = in_groups(weight, how.granularity, how.group_size)
    if how.scheme == "absmax":
        scale, zero_point = absmax_scale(x, how.bits), None
        q = quantize_absmax(x, scale, how.bits)
        if how.is_packed:
            q = (q + 2 ** (how.bits - 1)).to(torch.uint8)
    else:
        scale, zero_point = zero_point_scale(*zero_point_range(x), how.bits)
        q = quantize_zero_point(x, scale, zero_point, how.bits)
    integers = pack_bits(q, how.bits) if how.is_packed else q
    return QuantizedTensor(integers, scale, zero_point, weight.shape, how)


def quantization_error(x: torch.Tensor, quantized: torch.Tensor) -> dict[str, float]:
    """How far `quantized` is from `x`, any shape.

    Returns:
        "max": largest absolute difference. "mse": mean square. "sqnr": signal over noise in decibels,
        10 log10(mean x² / mse), about 6 for each bit; infinite where nothing differs.
    """
    difference = (quantized - x).double()
    mse = difference.square().mean()
    sqnr = 10 * torch.log10(x.double().square().mean() / mse)
    return {"max": difference.abs().max().item(), "mse": mse.item(), "sqnr": sqnr.item()}
