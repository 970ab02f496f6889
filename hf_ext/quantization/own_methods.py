"""Ours: every integer and scale can be read off the layers, see `quantized_linear.py`."""

from functools import partial

from transformers import PreTrainedModel

from hf_ext.quantization.activations import StaticActivation
from hf_ext.quantization.calibration import observe_inputs
from hf_ext.quantization.grouping import check_group_size
from hf_ext.quantization.method import TrainableMethod
from hf_ext.quantization.observers import make_observer
from hf_ext.quantization.quantizable import replace_layer
from hf_ext.quantization.quantized_linear import FakeQuantizedLinear, QuantizedLinear
from hf_ext.quantization.quantized_tensor import Quantization


class OwnMethod(TrainableMethod):
    """Weights by a `Quantization`, inputs as they are, or rounded.

    Args, besides those of `Method`:
        bits, scheme: see `Quantization`; a "group_size" among the defaults makes the weights' scales by group.
        activation: None, "dynamic" or "static".
    """

    def __init__(self, name, summary, *, bits: int, scheme: str, activation: str | None = None, **more):
        super().__init__(name, summary, calibrates=activation == "static", **more)
        self.bits, self.scheme, self.activation = bits, scheme, activation

    def how(self, options: dict) -> Quantization:
        """The weights' quantization under these options."""
        group_size = options.get("group_size")
        return Quantization(self.bits, self.scheme, "channel" if group_size is None else "group", group_size)

    def apply(self, model: PreTrainedModel, names: list[str], options: dict, calibration) -> None:
        how = self.how(options)
        if how.granularity == "group":  # for all layers before any is changed
            for name in names:
                check_group_size(how.group_size, model.get_submodule(name).in_features, name)
        observers = {}
        if self.calibrates:
            make = partial(make_observer, options["observer"])
            observers = observe_inputs(model, names, make, calibration)
        for name in names:
            layer = QuantizedLinear.from_linear(model.get_submodule(name), how, self.activation)
            if name in observers:
                layer.input_quantizer = StaticActivation(*observers[name].range()).to(model.device)
            replace_layer(model, name, layer)

    def why_not_trainable(self) -> str | None:
        return "ranges that are calibrated don't follow training" if self.calibrates else None

    def begin_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        made = [
            FakeQuantizedLinear.from_linear(model.get_submodule(name), self.how(options), self.activation)
            for name in names  # all of them, before any is put in place
        ]
        for name, layer in zip(names, made, strict=True):
            replace_layer(model, name, layer)

    def end_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        for name in names:
            replace_layer(model, name, model.get_submodule(name).quantized())

    def prepare(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        for name in names:
            old = model.get_submodule(name)
            new = QuantizedLinear(
                old.in_features,
                old.out_features,
                self.how(options),
                bias=old.bias is not None,
                activation=self.activation,
                dtype=old.weight.dtype,
            )
            replace_layer(model, name, new.eval())


OWN_METHODS = (
    OwnMethod("int8", "8 bits, absmax by channel", bits=8, scheme="absmax"),
    OwnMethod("int8_dynamic", "the same, inputs to 8 bits by token", bits=8, scheme="absmax", activation="dynamic"),
    OwnMethod(
        "int8_static",
        "the same, inputs to 8 bits over calibrated ranges",
        bits=8,
        scheme="absmax",
        activation="static",
        defaults={"observer": "minmax"},
    ),
    OwnMethod("int4", "4 bits, zero point by group", bits=4, scheme="zero_point", defaults={"group_size": 32}),
    OwnMethod("int2", "2 bits, zero point by group", bits=2, scheme="zero_point", defaults={"group_size": 32}),
)
