"""An ONNX file's matrix products in 8 bits, by ONNX Runtime's tools.

Weights get a scale for each column and use 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which
eight by eight bits would overflow. Products of two activations, embeddings and everything else stay in 32 bits.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static


WEIGHTED = ["MatMul", "Gemm"]
# bytes from which a weight lies in the file beside
OUTSIDE = "1024"


def quantize_file(path: Path, calibration: Iterable[Mapping[str, torch.Tensor]] | None) -> None:
    """Replace a file, and its weights beside it, by those of the quantized graph.

    Args:
        calibration: inputs by name, for ranges that are fixed; None for ranges that are found at each product.
    """
    with TemporaryDirectory(prefix=".quantizing-", dir=path.parent) as folder:
        folded, made = Path(folder) / "folded.onnx", Path(folder) / path.name
        _fold(path, folded)
        options = {
            "op_types_to_quantize": WEIGHTED,
            "per_channel": True,
            "reduce_range": True,
            "weight_type": QuantType.QInt8,
            "use_external_data_format": True,
            "extra_options": {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        }
        if calibration is None:
            quantize_dynamic(folded, made, **options)
        else:
            quantize_static(folded, made, Feeds(calibration), quant_format=QuantFormat.QDQ, **options)
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        for new in Path(folder).glob(f"{path.name}*"):
            os.replace(new, path.parent / new.name)


def _fold(path: Path, folded: Path) -> None:
    """The same graph with what can be computed ahead computed: a weight that is transposed on the way would be left out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{folded.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", OUTSIDE)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folded, load_external_data=False)
    del graph.graph.value_info[:]  # inferred again, of what the weights then are
    onnx.save(graph, folded)


class Feeds(CalibrationDataReader):
    """Inputs as ONNX Runtime's calibration asks for them."""

    def __init__(self, calibration: Iterable[Mapping[str, torch.Tensor]]):
        self.inputs: Iterator[Mapping[str, torch.Tensor]] = iter(calibration)

    def get_next(self) -> dict | None:
        inputs = next(self.inputs, None)
        return None if inputs is None else {name: value.numpy() for name, value in inputs.items()}
