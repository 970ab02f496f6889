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

    def write(self, part: Part, inputs: dict, path: Path) -> None:
        from transformers.exporters import DynamoConfig, DynamoExporter

        config = DynamoConfig(dynamic=True, dynamic_shapes=dynamic_shapes(part.free))
        with quietly():
            program = DynamoExporter().export(*exporter_arguments(part, inputs), config)
        _free_sums(program)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # holds the paths of this machine
        torch.export.save(program, path)

    def open(self, path: Path) -> Graph:
        return TorchExportGraph(path)


def _free_sums(program: torch.export.ExportedProgram) -> None:
    """Take back that P + T tokens are at least 4: tracing takes P and T for at least 2, and running for any number."""
    for expression in [one for one in program.range_constraints if not one.is_Symbol]:
        del program.range_constraints[expression]


class TorchExportGraph(Graph):
    """A loaded program."""

    def __init__(self, path: Path):
        with quietly():
            program = torch.export.load(path)
        _free_sums(program)
        self.names = list(flat(program.example_inputs[1]))
        # its guards are of the sizes that it was traced with; that it holds for others is what the parity shows
        self.module = program.module(check_guards=False)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return flat(self.module(**nested({name: inputs[name] for name in self.names})))
