"""GPTQ by gptqmodel: a matrix is rounded column by column, and the columns that are left make up for each error.

    minimize ||W X - W' X||² over integers, by the inverse of H = 2 X X^T      Frantar et al. 2023, arXiv 2210.17323, sec. 3

X is what the layer reads of the calibration texts, through the blocks before it that are rounded already. gptqmodel finds
integers, scales and zero points; they are kept in our own layers, so that a saved model doesn't need it any more.

Imported inside functions: gptqmodel is no extra of ours, its releases ask for a torch of their own.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_ext.quantization.calibration import run_calibration
from hf_ext.quantization.grouping import check_group_size, in_groups
from hf_ext.quantization.own_methods import OwnMethod
from hf_ext.quantization.packed_bits import pack_bits
from hf_ext.quantization.quantizable import replace_layer
from hf_ext.quantization.quantized_linear import QuantizedLinear
from hf_ext.quantization.quantized_tensor import Quantization, QuantizedTensor
from hf_ext.quantization.zero_point import quantize_zero_point


DAMPING = 0.01  # of the mean of H's diagonal, added to it; Frantar et al., sec. 3.3


class GptqMethod(OwnMethod):
    """Zero points by group, as `int4`, but rounded so that the layer's output on the calibration set changes least."""

    package, module = "gptqmodel", "gptqmodel"
    needed_to_load = False

    def __init__(self, name: str, summary: str, *, bits: int, **more):
        super().__init__(name, summary, bits=bits, scheme="zero_point", **more)
        self.calibrates = True

    def why_not_trainable(self) -> str | None:
        return "it rounds after training alone"

    def apply(
        self,
        model: PreTrainedModel,
        names: list[str],
        options: dict,
        calibration: Iterable[Mapping[str, torch.Tensor]],
    ) -> None:
        how = self.how(options)
        for name in names:  # all of them, before any is changed
            check_group_size(how.group_size, model.get_submodule(name).in_features, name)
        for block in by_block(names):
            solvers = {name: make_solver(model.get_submodule(name), how) for name in block}
            hooks = [
                model.get_submodule(name).register_forward_hook(
                    lambda _, inputs, output, solver=solver: solver.add_batch(inputs[0].detach(), output.detach())
                )
                for name, solver in solvers.items()
            ]
            try:
                run_calibration(model, calibration)
            finally:
                for hook in hooks:
                    hook.remove()
            for name, solver in solvers.items():
                layer = model.get_submodule(name)
                found = solver.fasterquant(percdamp=DAMPING, group_size=how.group_size, actorder=False)
                replace_layer(model, name, as_integers(layer, how, *found[:2]))
                solver.free()


def by_block(names: list[str]) -> list[list[str]]:
    """The layers of each block together, blocks in the order in which they compute."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(re.sub(r"(\.\d+)\..*", r"\1", name), []).append(name)
    return list(blocks.values())


def make_solver(layer: nn.Linear, how: Quantization):
    """gptqmodel's for one layer, as Optimum makes it. Columns keep their order, so that a group is of neighbours."""
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization import GPTQ

    config = QuantizeConfig(
        bits=how.bits,
        group_size=how.group_size,
        sym=False,
        desc_act=False,
        act_group_aware=False,
        offload_to_disk=False,
    )
    solver = GPTQ(layer, qcfg=config)
    solver.quantizer.configure(bits=how.bits, sym=False, perchannel=True)
    return solver


def as_integers(layer: nn.Linear, how: Quantization, scale: torch.Tensor, zero_point: torch.Tensor) -> QuantizedLinear:
    """A layer whose weights are rounded to `scale * (q - zero_point)`, (O, I / group_size) each, by its integers q."""
    weight = in_groups(layer.weight.detach(), how.granularity, how.group_size)
    scale = scale.reshape(-1, 1).to(weight.dtype)
    zero_point = zero_point.reshape(-1, 1).round().to(torch.uint8)
    q = quantize_zero_point(weight, scale, zero_point, how.bits)
    made = QuantizedLinear(layer.in_features, layer.out_features, how, bias=layer.bias is not None, dtype=weight.dtype)
    made._take(QuantizedTensor(pack_bits(q, how.bits), scale, zero_point, layer.weight.shape, how))
    made.bias = layer.bias
    return made.train(layer.training).to(layer.weight.device)


GPTQ_METHODS = (
    GptqMethod("gptq_int4", "4 bits, zero point by group, errors made up for", bits=4, defaults={"group_size": 32}),
)
