"""One front for every way of quantizing a model: `quantize(model, method=…)`."""

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from hf_ext.models.configuration_choices import check_choice
from hf_ext.quantization.gptq_methods import GPTQ_METHODS
from hf_ext.quantization.method import Method, TrainableMethod
from hf_ext.quantization.own_methods import OWN_METHODS
from hf_ext.quantization.quantizable import quantizable_layers
from hf_ext.quantization.quanto_methods import QUANTO_METHODS
from hf_ext.quantization.torchao_methods import TORCHAO_METHODS


METHODS: dict[str, Method] = {m.name: m for m in (*OWN_METHODS, *QUANTO_METHODS, *TORCHAO_METHODS, *GPTQ_METHODS)}


def find_method(name: str, *, to_load: bool = False) -> Method:
    """The method of that name.

    Args:
        to_load: what it has made, not to quantize with it.

    Raises:
        ValueError: an unknown one, or one whose library isn't installed.
    """
    check_choice("method", name, METHODS)
    method = METHODS[name]
    reason = method.missing() if method.needed_to_load or not to_load else None
    if reason is not None:
        raise ValueError(f"method={name!r}: {reason}")
    return method


def find_trainable_method(name: str) -> TrainableMethod:
    """The method of that name, if a model can be trained towards it.

    Raises:
        ValueError: what `find_method` refuses, or a method that rounds after training alone.
    """
    method = find_method(name)
    reason = _why_not_trainable(method)
    if reason is not None:
        able = ", ".join(other.name for other in METHODS.values() if _why_not_trainable(other) is None)
        raise ValueError(f"method={name!r}: can't be trained towards, {reason}; use one of {able}")
    return method


def _why_not_trainable(method: Method) -> str | None:
    if isinstance(method, TrainableMethod):
        return method.why_not_trainable()
    return "its library rounds after training alone"


def quantize(
    model: PreTrainedModel,
    method: str = "int8",
    *,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    exclude: Iterable[str] = (),
    **options,
) -> PreTrainedModel:
    """Quantize the linear layers of the model's body in place, for inference.

    Args:
        model: one of ours, any family and head, with plain weights.
        method: a name in `METHODS`.
        calibration: batches of the model's inputs by name; for the methods that calibrate, and for no others.
        exclude: last parts of names of layers that keep their floats, such as "o_proj".
        options: the method's own: `group_size`, `observer`.

    Returns:
        The same model in eval mode; `save_quantized` saves it. Its `quantized_with` says how it was made.

    Raises:
        ValueError: one line; an unknown method or option, a library that isn't there, a model that isn't ours, is quantized
            already or has experts, a calibration set that is missing, empty or of no use.
    """
    chosen = find_method(method)
    options = chosen.options(options)
    exclude = list(exclude)
    names = quantizable_layers(model, exclude)
    if chosen.calibrates and calibration is None:
        raise ValueError(f"calibration: method={method!r} needs batches of real inputs; give some")
    if not chosen.calibrates and calibration is not None:
        raise ValueError(f"calibration: has no effect with method={method!r}; leave it out")
    batches = None if calibration is None else list(calibration)  # looked at before any layer is changed
    if batches == []:
        raise ValueError("calibration: an empty set of batches, no range can be found; give at least one")
    chosen.apply(model.eval(), names, options, batches)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.quantized_with = {"method": method, "options": options, "layers": names}
    return model
