"""ExecuTorch's programs (.pte), for phones and other small machines, computed by XNNPACK on the CPU.

Its memory is laid out before it runs, so every dim has a largest size: `Target.write`'s `limits`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.exc import UserError

from hf_ext.export.dense_experts import dense_experts
from hf_ext.export.executorch_operators import rewritten
from hf_ext.export.parts import Part, flat
from hf_ext.export.target import Graph, Target
from hf_ext.export.tracing import dynamic_shapes, exporter_arguments, quietly


class ExecutorchTarget(Target):
    name = "executorch"
    suffix = ".pte"
    summary = "ExecuTorch, for phones and other small machines"
    packages = distributions = ("executorch",)
    extra = "executorch"
    has_limits = True

    def write(self, part: Part, inputs: dict, path: Path, limits: Mapping[str, int]) -> None:
        with quietly(), dense_experts(part.module), trainable_as_before(part.module):
            program = exporter().export(*exporter_arguments(part, inputs), configuration(part, limits))
        with path.open("wb") as file:
            program.write_to_file(file)
        with torch.no_grad():
            outputs = part.module(**inputs)
        names = {"inputs": list(flat(inputs)), "outputs": list(flat(outputs))}  # in the file they have none
        names_of(path).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")

    def open(self, path: Path) -> Graph:
        return ExecutorchGraph(path)


@contextmanager
def trainable_as_before(module: nn.Module) -> Iterator[None]:
    """transformers' exporter freezes what it is given, which may be somebody's model in training."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def names_of(path: Path) -> Path:
    """The file beside it that says what its inputs and outputs are called."""
    return path.with_suffix(".json")


def configuration(part: Part, limits: Mapping[str, int]):
    """Of transformers' exporter."""
    from transformers.exporters.exporter_executorch import ExecutorchConfig

    sizes = {name: torch.export.Dim(name, min=0, max=most) for name, most in limits.items()}
    # the trace has it that there are two tokens at hand and two in the cache at least
    sizes["seen"] = torch.export.Dim("seen", min=4, max=limits["seen"] + 2)
    return ExecutorchConfig(backend="xnnpack", dynamic=True, dynamic_shapes=dynamic_shapes(part.free, sizes))


def exporter():
    """transformers', with `rewritten` between its trace and its lowering."""
    from transformers.exporters import DynamoExporter
    from transformers.exporters.exporter_executorch import ExecutorchExporter

    class RewritingExporter(DynamoExporter):
        def export(self, model, sample_inputs, config) -> torch.export.ExportedProgram:
            try:
                program = super().export(model, sample_inputs, config)
            except UserError:
                # the trace saw a size that isn't this or that, T - 1 != 1, and can't tell whether it ever is: then that is
                # no condition, and whether it matters shows in the comparison. Sliding windows are lowered only without it
                config = replace(config, prefer_deferred_runtime_asserts_over_guards=True)
                program = super().export(model, sample_inputs, config)
            return program.run_decompositions(rewritten())

    class Exporter(ExecutorchExporter, RewritingExporter):
        """ExecutorchExporter calls the next in line for its trace."""

    return Exporter()


class ExecutorchGraph(Graph):
    """A loaded program. What it gives is copied out of its memory at each run.

    Raises:
        ValueError: the runtime lacks an operator, which it names on stderr.
    """

    def __init__(self, path: Path):
        with quietly():
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(path)
            try:
                self.method = program.load_method("forward")
            except RuntimeError as error:
                raise ValueError(f"{path.name}: this ExecuTorch can't load it ({error}); see stderr") from error
        names = json.loads(names_of(path).read_text(encoding="utf-8"))
        self.inputs, self.outputs = names["inputs"], names["outputs"]
        described = self.method.metadata
        self.limits = {name: tuple(described.input_tensor_meta(i).sizes()) for i, name in enumerate(self.inputs)}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As `Graph.run`.

        Raises:
            ValueError: an input that is larger than what memory was laid out for, or the runtime gives up.
        """
        given = []
        for name, limit in self.limits.items():
            value = inputs[name].detach().contiguous()
            if any(size > most for size, most in zip(value.shape, limit, strict=True)):
                raise ValueError(
                    f"{name}: shape {tuple(value.shape)} is above {limit}, the largest that the program has memory for; "
                    "export the model again with another max_batch_size or max_length"
                )
            given.append(value)
        try:
            outputs = self.method.execute(given)
        except RuntimeError as error:
            raise ValueError(f"executorch: can't run this graph ({error}); see stderr") from error
        return dict(zip(self.outputs, outputs, strict=True))
