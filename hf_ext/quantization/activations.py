"""What a layer's input goes through before it is multiplied: nothing, or a rounding with its own or a fixed range.

B batch, T tokens, d size. All take (..., d) and give (..., d), and let gradients through.
"""

import torch
from torch import nn

from hf_ext.quantization.absmax import absmax_scale, dequantize_absmax, quantize_absmax
from hf_ext.quantization.fake_quantization import fake_quantize_activation, straight_through
from hf_ext.quantization.zero_point import zero_point_scale


ACTIVATIONS = (None, "dynamic", "static")
ACTIVATION_BITS = 8


class DynamicActivation(nn.Module):
    """Each token's vector is rounded to 8 bits by its own largest value: no calibration, a maximum a token; the "vector-wise
    quantization" of Dettmers et al. 2022, arXiv 2208.07339, sec. 3.1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = absmax_scale(x, ACTIVATION_BITS)
            rounded = dequantize_absmax(quantize_absmax(x, scale, ACTIVATION_BITS), scale)
        return straight_through(x, rounded)


class StaticActivation(nn.Module):
    """Every value is rounded to 8 bits over one range for all inputs, which calibration has found; Jacob et al. 2018,
    arXiv 1712.05877, sec. 3.1. What lies outside is cut off.

    Args:
        low, high: the range; it holds 0.
    """

    def __init__(self, low: float = 0.0, high: float = 0.0):
        super().__init__()
        scale, zero_point = zero_point_scale(torch.tensor(low), torch.tensor(high), ACTIVATION_BITS)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize_activation(x, self.scale, self.zero_point, ACTIVATION_BITS)

    def _apply(self, fn, recurse: bool = True):
        # half() must not round the scale: the integers would stand for other numbers
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        return self


def make_activation(kind: str | None) -> nn.Module:
    """The module of that name; a static one has no range yet."""
    if kind is None:
        return nn.Identity()
    return {"dynamic": DynamicActivation, "static": StaticActivation}[kind]()
