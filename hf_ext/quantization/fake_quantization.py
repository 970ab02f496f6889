"""Training through a rounding: forward computes with rounded numbers, backward as if none had been rounded.

Jacob et al. 2018, arXiv 1712.05877, sec. 3.2; the straight-through estimator is Bengio et al. 2013, arXiv 1308.3432.
"""

import torch

from hf_ext.quantization.quantized_tensor import Quantization, quantize_tensor
from hf_ext.quantization.zero_point import dequantize_zero_point, quantize_zero_point


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The number `rounded`, the gradient of x: d rounded / d x = 1."""
    return _StraightThrough.apply(x, rounded)


def fake_quantize_weight(weight: torch.Tensor, how: Quantization) -> torch.Tensor:
    """(O, I) -> (O, I): quantized and back, exactly as `QuantizedLinear` will multiply by it; the gradient goes to all."""
    with torch.no_grad():
        rounded = quantize_tensor(weight, how).dequantize()
    return straight_through(weight, rounded)


def fake_quantize_activation(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int = 8
) -> torch.Tensor:
    """x of any shape, quantized with a given range and back; what is outside of the range gets no gradient.

    Args:
        scale, zero_point: one number each.
    """
    low, high = -zero_point.to(scale.dtype) * scale, (2**bits - 1 - zero_point.to(scale.dtype)) * scale
    with torch.no_grad():
        rounded = dequantize_zero_point(quantize_zero_point(x, scale, zero_point, bits), scale, zero_point)
    return straight_through(x.clamp(low, high), rounded.to(x.dtype))


class _StraightThrough(torch.autograd.Function):
    # the usual x + (rounded - x).detach() is rounded's number only nearly; training must see the very one that is kept

    @staticmethod
    def forward(ctx, x, rounded):
        return rounded.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None
