"""Linear layers over integers: one that computes from them, and one that is trained towards them.

O outputs, I inputs. Both compute in floats what an integer kernel would: they save memory and show the error, not time.
"""

import torch
from torch import nn

from hf_ext.layers.linear import Linear
from hf_ext.ops.matrix_product import linear
from hf_ext.quantization.activations import make_activation
from hf_ext.quantization.fake_quantization import fake_quantize_weight
from hf_ext.quantization.grouping import check_group_size
from hf_ext.quantization.quantized_tensor import Quantization, QuantizedTensor, quantize_tensor


class QuantizedLinear(nn.Module):
    """y = Q(x) W'^T + b, W' from integers at each call, Q the rounding of the input or nothing.

    Args:
        in_features, out_features: I, O. bias: whether there is one.
        how: how W is quantized. activation: None, "dynamic" or "static", see `activations.py`.
        dtype: of scales and bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        how: Quantization,
        *,
        bias: bool = True,
        activation: str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.in_features, self.out_features, self.how, self.activation = in_features, out_features, how, activation
        self._take(quantize_tensor(torch.zeros(out_features, in_features, dtype=dtype), how))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
        self.input_quantizer = make_activation(activation)

    def _take(self, weight: QuantizedTensor) -> None:
        self.register_buffer("integers", weight.integers)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)

    @classmethod
    def from_linear(cls, layer: nn.Linear, how: Quantization, activation: str | None = None) -> "QuantizedLinear":
        """The layer's own weights, rounded; its bias is taken over as it is."""
        made = _of_shape(cls, layer, how, activation)
        made._take(quantize_tensor(layer.weight.detach(), how))
        made.bias = layer.bias
        return made.train(layer.training).to(layer.weight.device)

    @property
    def weight(self) -> torch.Tensor:
        """W', (O, I), computed anew."""
        shape = torch.Size((self.out_features, self.in_features))
        return QuantizedTensor(self.integers, self.scale, self.zero_point, shape, self.how).dequantize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        return linear(self.input_quantizer(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.how}"


class FakeQuantizedLinear(Linear):
    """A layer in quantization-aware training: its floats are trained, and rounded at each call as they will be kept.

    Args: as `QuantizedLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        how: Quantization,
        *,
        bias: bool = True,
        activation: str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(in_features, out_features, bias=bias, dtype=dtype)
        if how.granularity == "group":
            check_group_size(how.group_size, in_features)
        self.how, self.activation = how, activation
        self.input_quantizer = make_activation(activation)

    @classmethod
    def from_linear(cls, layer: nn.Linear, how: Quantization, activation: str | None = None) -> "FakeQuantizedLinear":
        """Over the same weight and bias, which stay the same tensors."""
        made = _of_shape(cls, layer, how, activation)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training).to(layer.weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        return linear(self.input_quantizer(x), fake_quantize_weight(self.weight, self.how), self.bias)

    def quantized(self) -> QuantizedLinear:
        """What was trained, as integers: gives the same outputs."""
        made = QuantizedLinear.from_linear(self, self.how, self.activation)
        made.input_quantizer = self.input_quantizer
        return made


def _of_shape(kind: type, layer: nn.Linear, how: Quantization, activation: str | None) -> nn.Module:
    """A new layer of that kind, of another's sizes, dtype, and with a bias where that has one."""
    return kind(
        layer.in_features,
        layer.out_features,
        how,
        bias=layer.bias is not None,
        activation=activation,
        dtype=layer.weight.dtype,
    )
