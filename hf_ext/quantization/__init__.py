"""Models in fewer bits: integers and scales from scratch, other libraries behind one front, and what it costs."""

from hf_ext.quantization.methods import METHODS, quantize
from hf_ext.quantization.quantized_linear import FakeQuantizedLinear, QuantizedLinear
from hf_ext.quantization.quantized_tensor import (
    Quantization,
    QuantizedTensor,
    quantization_error,
    quantize_tensor,
)
from hf_ext.quantization.saving import load_quantized, save_quantized


__all__ = [
    "METHODS",
    "FakeQuantizedLinear",
    "Quantization",
    "QuantizedLinear",
    "QuantizedTensor",
    "load_quantized",
    "quantization_error",
    "quantize",
    "quantize_tensor",
    "save_quantized",
]
