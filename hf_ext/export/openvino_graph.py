"""A graph in OpenVINO's CPU plugin: read from torch's tensors, written into torch's tensors, nothing copied between."""

from collections.abc import Mapping
from pathlib import Path

import openvino
import torch

from hf_ext.export.target import Graph


# what is asked for is what was exported: no bf16 where the processor has it, no rounded inputs beside rounded weights
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY"}
DTYPES = {"f32": torch.float32, "i64": torch.int64, "i32": torch.int32, "boolean": torch.bool}


class OpenVinoGraph(Graph):
    """A compiled model and one request to it, with as many threads as torch has when it is opened."""

    def __init__(self, path: Path):
        options = EXACT | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = openvino.Core().compile_model(path, "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.inputs = {port.any_name: DTYPES[port.element_type.get_type_name()] for port in self.compiled.inputs}
        self.outputs = {port.any_name: DTYPES[port.element_type.get_type_name()] for port in self.compiled.outputs}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        held = {name: inputs[name].detach().to(dtype).contiguous() for name, dtype in self.inputs.items()}
        for name, value in held.items():
            self.request.set_tensor(name, openvino.Tensor(value.numpy(), shared_memory=True))
        given = {}
        for name, dtype in self.outputs.items():
            shape = shape_of(name, held)
            if shape is not None:
                given[name] = torch.empty(shape, dtype=dtype)
                self.request.set_tensor(name, openvino.Tensor(given[name].numpy(), shared_memory=True))
        self.request.infer()
        return {
            name: given[name] if name in given else torch.from_numpy(self.request.get_tensor(name).data.copy())
            for name in self.outputs
        }


def shape_of(output: str, inputs: Mapping[str, torch.Tensor]) -> tuple[int, ...] | None:
    """Of the cache that a graph gives for one that it took; None where that isn't known before it has run."""
    past = inputs.get(f"past_key_values.{output.removeprefix('present.')}") if output.startswith("present.") else None
    if past is None:
        return None
    B, K, P, D = past.shape
    return B, K, P + inputs["input_ids"].shape[1], D
