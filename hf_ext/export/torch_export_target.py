"""torch.export's programs (.pt2), run by torch without the model's code."""

from collections.abc import Mapping
from pathlib import Path

import torch

from hf_ext.export.parts import Part, flat, nested
from hf_ext.export.target import Graph, Target
from hf_ext.export.tracing import dynamic_shapes, exporter_arguments, quietly


class TorchExportTarget(Target):
    name = "torch-export"
    suffix = ".pt2"
    summary = "programs of torch.export, for torch without the model's code, and for AOTInductor"

    def write(self, part: Part, inputs: dict, path: Path, limits: Mapping[str, int]) -> None:
        from transformers.exporters import DynamoConfig, DynamoExporter

        config = DynamoConfig(dynamic=True, dynamic_shapes=dynamic_shapes(part.free))
        with quietly():
            program = DynamoExporter().export(*exporter_arguments(part, inputs), config)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # holds the paths of this machine
        torch.export.save(program, path)

    def open(self, path: Path) -> Graph:
        return TorchExportGraph(path)


class TorchExportGraph(Graph):
    """A loaded program."""

    def __init__(self, path: Path):
        with quietly():
            program = torch.export.load(path)
        # bounds that the trace assumed, such as a mask of at least 4 columns; that it holds for others the parity shows
        program.range_constraints.clear()
        self.names = list(flat(program.example_inputs[1]))
        self.module = program.module(check_guards=False)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return flat(self.module(**nested({name: inputs[name] for name in self.names})))
