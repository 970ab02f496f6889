"""Training with 8-bit matrix products: what accelerate's torchao recipe needs so that what is saved are plain weights.

torchao multiplies in fp8 what it scales on the way (Micikevicius et al. 2022, arXiv 2209.05433); the weights themselves
stay in the precision that they are trained in. accelerate's own settings wrap them for a gathering in fp8 under FSDP as
well, and a wrapped weight has no memory that `save_pretrained` could ask for.
"""

import sys
from importlib.util import find_spec

from accelerate.utils import AORecipeKwargs
from torch import nn

from hf_ext.layers.linear import Linear


def float8_handlers(gathers_float8: bool, emulate: bool = False) -> list[AORecipeKwargs]:
    """For `Accelerator(kwargs_handlers=…)`; none where torchao isn't there and transformer_engine does it.

    Args:
        gathers_float8: whether FSDP shards the weights, which it then gathers in fp8.
        emulate: compute the same numbers without 8-bit products, on any device.
    """
    if find_spec("torchao") is None:
        return []
    from torchao.float8 import Float8LinearConfig

    config = Float8LinearConfig(
        pad_inner_dim=True,  # sizes that aren't multiples of 16, which the products want
        enable_fsdp_float8_all_gather=gathers_float8,
        emulate=emulate,
    )
    return [AORecipeKwargs(config=config)]


def plain_products(model: nn.Module) -> nn.Module:
    """`model` with its 8-bit layers back as they were, over the same weights, in place: what a fresh process loads."""
    module = sys.modules.get("torchao.float8.float8_linear")
    if module is None:  # nothing has made one; importing it takes seconds
        return model
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, module.Float8Linear):
                setattr(parent, name, _plain(layer))
    return model


def _plain(layer: nn.Linear) -> Linear:
    plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)
