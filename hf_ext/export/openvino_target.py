"""OpenVINO's graphs (.xml with its .bin), run by its CPU plugin; fewer bits by NNCF."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from hf_ext.export.parts import Part
from hf_ext.export.target import Graph, Quantization, Target
from hf_ext.export.tracing import dynamic_shapes, exporter_arguments, quietly


class OpenVinoTarget(Target):
    name = "openvino"
    suffix = ".xml"
    summary = "OpenVINO, for Intel's processors and others of their kind"
    packages = distributions = ("openvino", "nncf")
    extra = "openvino"
    quantizations = {
        "int8": Quantization("weights in 8 bits", tolerance=0.1),
        "int4": Quantization("weights in 4 bits by groups, embeddings and the last layer in 8", tolerance=0.6),
        "int8_static": Quantization(
            "weights in 8 bits, inputs of each product rounded by ranges seen in texts", tolerance=0.5, calibrates=True
        ),
    }

    def write(self, part: Part, inputs: dict, path: Path, limits: Mapping[str, int]) -> None:
        from transformers.exporters import OpenVINOConfig, OpenVINOExporter

        config = OpenVINOConfig(
            dynamic=True,
            dynamic_shapes=dynamic_shapes(part.free),
            stateful=False,  # the cache is in torch's tensors, as with every target
            compress_to_fp16=False,
            output_path=path,
        )
        with quietly():
            OpenVINOExporter().export(*exporter_arguments(part, inputs), config)

    def open(self, path: Path) -> Graph:
        from hf_ext.export.openvino_graph import OpenVinoGraph

        return OpenVinoGraph(path)

    def quantize(self, path: Path, quantization: str, calibration: Iterable[Mapping[str, torch.Tensor]] | None) -> None:
        from hf_ext.export.openvino_quantization import quantize_file

        with quietly():
            quantize_file(path, quantization, calibration)
