"""Quantization-aware training of a whole model: rounded as it will be kept, trained as usual, then kept.

Jacob et al. 2018, arXiv 1712.05877, sec. 3: weights that have seen their rounding lose less by it.
"""

from transformers import PreTrainedModel

from hf_ext.quantization.methods import find_method
from hf_ext.quantization.own_methods import OwnMethod
from hf_ext.quantization.quantizable import quantizable_layers, replace_layer
from hf_ext.quantization.quantized_linear import FakeQuantizedLinear


def prepare_training(model: PreTrainedModel, method: str = "int8", *, exclude=(), **options) -> PreTrainedModel:
    """Have `model` compute with rounded weights (and inputs), in place; its parameters stay the same tensors, and train.

    Args:
        method, exclude, options: as `quantize`'s; one of ours without calibrated inputs.

    Raises:
        ValueError: what `quantize` refuses, or a method that can't be trained.
    """
    chosen = find_method(method)
    if not isinstance(chosen, OwnMethod):
        raise ValueError(f"method={method!r}: can't be trained here; use int8, int8_dynamic, int4 or int2")
    if chosen.calibrates:
        raise ValueError(f"method={method!r}: ranges that are calibrated don't follow training; use int8_dynamic")
    options = chosen.options(options)
    names = quantizable_layers(model, exclude)
    made = [
        FakeQuantizedLinear.from_linear(model.get_submodule(name), chosen.how(options), chosen.activation)
        for name in names  # all of them, before any is put in place
    ]
    for name, layer in zip(names, made, strict=True):
        replace_layer(model, name, layer)
    model.trained_towards = {"method": method, "options": options, "layers": names}
    return model


def finish_training(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the integers, in place: the same outputs as in training, and what `quantize` would have left.

    Raises:
        ValueError: a model that wasn't prepared.
    """
    made = getattr(model, "trained_towards", None)
    if made is None:
        raise ValueError(f"model: this {type(model).__name__} isn't prepared; call prepare_training before training")
    for name in made["layers"]:
        replace_layer(model, name, model.get_submodule(name).quantized())
    del model.trained_towards
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.quantized_with = made
    return model.eval()
