"""A graph in ONNX Runtime, which reads its inputs where torch has them and writes its outputs where torch wants them.

Bound inputs and outputs (IOBinding) are addresses: no tensor is copied on the way in or out. What a cache costs at each
token is what the graph itself does to make it longer.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from hf_ext.export.target import Graph


# ONNX's names of what our graphs take and give
DTYPES = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(int64)": (torch.int64, np.int64),
    "tensor(bool)": (torch.bool, np.bool_),
}


class OnnxGraph(Graph):
    """A session on the CPU, with as many threads as torch has when it is opened."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = {one.name: one for one in self.session.get_outputs()}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        binding = self.session.io_binding()
        sizes: dict[str, int] = {}
        held = []  # what is bound must outlive the run
        for name, declared in self.inputs.items():
            dtype, number = DTYPES[declared.type]
            value = inputs[name].detach().to(dtype).contiguous()
            held.append(value)
            sizes |= {dim: size for dim, size in zip(declared.shape, value.shape, strict=True) if isinstance(dim, str)}
            if value.numel():
                binding.bind_input(name, "cpu", 0, number, tuple(value.shape), value.data_ptr())
            else:  # nothing lies nowhere
                binding.bind_cpu_input(name, np.empty(tuple(value.shape), number))
        found: dict[str, torch.Tensor] = {}
        for name, declared in self.outputs.items():
            shape = [size_of(dim, sizes) for dim in declared.shape]
            if None in shape or 0 in shape:  # the engine alone knows
                binding.bind_output(name, "cpu")
                continue
            dtype, number = DTYPES[declared.type]
            found[name] = torch.empty(shape, dtype=dtype)
            binding.bind_output(name, "cpu", 0, number, shape, found[name].data_ptr())
        self.session.run_with_iobinding(binding)
        if len(found) < len(self.outputs):
            made = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            found |= {name: torch.from_numpy(made[name].numpy()) for name in self.outputs if name not in found}
        return {name: found[name] for name in self.outputs}


def size_of(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """A dim as ONNX names it, 8, "s1" or "s1 + s70", from the sizes of the inputs' dims; None where they don't tell."""
    if isinstance(dim, int):
        return dim
    total = 0
    for term in (dim or "?").split("+"):
        term = term.strip()
        if not (term.isdigit() or term in sizes):
            return None
        total += int(term) if term.isdigit() else sizes[term]
    return total
