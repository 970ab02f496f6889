"""ONNX files, run by ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hf_ext.export.parts import Part
from hf_ext.export.target import Graph, Quantization, Target
from hf_ext.export.tracing import dynamic_shapes, exporter_arguments, quietly


class OnnxTarget(Target):
    name = "onnx"
    suffix = ".onnx"
    summary = "ONNX, for ONNX Runtime and whatever else reads it"
    packages = distributions = ("onnx", "onnxscript", "onnxruntime")
    quantizations = {
        "int8_dynamic": Quantization("weights in 8 bits, inputs of each product rounded as they come", tolerance=0.3),
        "int8_static": Quantization(
            "weights in 8 bits, inputs rounded by ranges seen in texts", tolerance=0.5, calibrates=True
        ),
    }

    def write(self, part: Part, inputs: dict, path: Path) -> None:
        from transformers.exporters import OnnxConfig, OnnxExporter

        config = OnnxConfig(dynamic=True, dynamic_shapes=dynamic_shapes(part.free), output_path=path)
        with quietly():
            OnnxExporter().export(*exporter_arguments(part, inputs), config)

    def open(self, path: Path) -> Graph:
        return OnnxGraph(path)

    def quantize(self, path: Path, quantization: str, calibration: Sequence[Mapping[str, torch.Tensor]] | None) -> None:
        from hf_ext.export.onnx_quantization import quantize_file

        quantize_file(path, calibration)


# ONNX's names of what our graphs take and give
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}


class OnnxGraph(Graph):
    """A session of ONNX Runtime on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        feeds = {name: inputs[name].contiguous().numpy() for name in self.inputs}
        found = self.session.run(None, feeds)
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}
