"""ONNX files, run by ONNX Runtime."""

from collections.abc import Iterable, Mapping
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

    def write(self, part: Part, inputs: dict, path: Path, limits: Mapping[str, int]) -> None:
        from transformers.exporters import OnnxConfig, OnnxExporter

        config = OnnxConfig(dynamic=True, dynamic_shapes=dynamic_shapes(part.free))
        with quietly():
            program = OnnxExporter().export(*exporter_arguments(part, inputs), config)
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # where in the sources it comes from, with the paths of this machine
            program.save(path, external_data=True)

    def open(self, path: Path) -> Graph:
        from hf_ext.export.onnx_graph import OnnxGraph

        return OnnxGraph(path)

    def quantize(self, path: Path, quantization: str, calibration: Iterable[Mapping[str, torch.Tensor]] | None) -> None:
        from hf_ext.export.onnx_quantization import quantize_file

        with quietly():
            quantize_file(path, calibration)
