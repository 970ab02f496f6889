"""Fewer bits by NNCF: weights alone, or inputs too by the ranges that they are seen to have."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import nncf
import openvino
import torch
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode


# weights that share a scale in 4 bits; where the rows aren't whole groups, the largest power of two that divides them
GROUP_SIZE = 64
SMALLEST_GROUP = 16


def quantize_file(path: Path, quantization: str, calibration: Iterable[Mapping[str, torch.Tensor]] | None) -> None:
    """Replace a graph by one of fewer bits.

    Args:
        path: of the .xml. quantization: "int8", "int4" or "int8_static". calibration: inputs by name, of the last.
    """
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is replaced while its weights are in use
    model = core.read_model(path)
    if quantization == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    elif quantization == "int4":
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            group_size=GROUP_SIZE,
            ratio=1.0,
            advanced_parameters=AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=SMALLEST_GROUP
            ),
        )
    else:
        names = {name for port in model.inputs for name in port.names}
        seen = [{name: value.numpy() for name, value in inputs.items() if name in names} for inputs in calibration]
        model = nncf.quantize(
            model, nncf.Dataset(seen), model_type=nncf.ModelType.TRANSFORMER, subset_size=max(1, len(seen))
        )
    partial = path.with_name(f"{path.stem}.partial.xml")
    openvino.save_model(model, partial, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):  # the second names no file: weights lie beside it under its own name
        os.replace(partial.with_suffix(suffix), path.with_suffix(suffix))
