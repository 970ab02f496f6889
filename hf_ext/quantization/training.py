"""Quantization-aware training of a whole model: rounded as it will be kept, trained as usual, then kept.

Jacob et al. 2018, arXiv 1712.05877, sec. 3: weights that have seen their rounding lose less by it.
"""

from collections.abc import Iterable

from transformers import PreTrainedModel

from hf_ext.layers.linear import Linear
from hf_ext.quantization.methods import METHODS, find_trainable_method
from hf_ext.quantization.quantizable import quantizable_layers, replace_layer


def prepare_training(
    model: PreTrainedModel, method: str = "int8", *, exclude: Iterable[str] = (), **options
) -> PreTrainedModel:
    """Have `model` compute with rounded weights (and inputs), in place; its parameters keep their names, and train.

    Args:
        method, exclude, options: as `quantize`'s; int8, int8_dynamic, int4, int2 or torchao_int4.

    Raises:
        ValueError: what `quantize` refuses, or a method that can't be trained towards.
    """
    chosen = find_trainable_method(method)
    options = chosen.options(options)
    names = quantizable_layers(model, list(exclude))
    chosen.begin_training(model, names, options)
    model.trained_towards = {"method": method, "options": options, "layers": names}
    return model


def finish_training(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the integers, in place: the same outputs as in training, and a model as `quantize` leaves it.

    Raises:
        ValueError: a model that wasn't prepared.
    """
    made = getattr(model, "trained_towards", None)
    if made is None:
        raise ValueError(f"model: this {type(model).__name__} isn't prepared; call prepare_training before training")
    METHODS[made["method"]].end_training(model, made["layers"], made["options"])
    del model.trained_towards
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.quantized_with = made
    return model.eval()


def leave_training(model: PreTrainedModel) -> PreTrainedModel:
    """Plain layers over the trained floats again, in place: the model that the checkpoints load as.

    Raises:
        ValueError: a model that wasn't prepared.
    """
    made = getattr(model, "trained_towards", None)
    if made is None:
        raise ValueError(f"model: this {type(model).__name__} isn't prepared; there is nothing to leave")
    for name in made["layers"]:
        old = model.get_submodule(name)
        plain = Linear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        plain.weight, plain.bias = old.weight, old.bias
        replace_layer(model, name, plain.train(old.training))
    del model.trained_towards
    return model
