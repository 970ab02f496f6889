"""optimum-quanto's: weights in 8, 4 or 2 bits or in float8, inputs in 8 bits over calibrated ranges.

Imported inside functions: quanto is an extra.
"""

from transformers import PreTrainedModel

from hf_ext.quantization.calibration import run_calibration
from hf_ext.quantization.method import Method


class QuantoMethod(Method):
    """quanto's `quantize` and `freeze`.

    With activations the inputs of each product are rounded; its outputs stay floats, for which of them quanto leaves out
    ("streamline") depends on the calibration run and isn't in what it saves.

    Args, besides those of `Method`:
        weights, activations: names of quanto's types.
    """

    package, module = "optimum-quanto", "optimum.quanto"

    def __init__(self, name, summary, *, weights: str, activations: str | None = None):
        super().__init__(name, summary, calibrates=activations is not None)
        self.weights, self.activations = weights, activations

    def missing(self) -> str | None:
        from importlib.util import find_spec

        # find_spec of a submodule imports the parent, which may not be there
        return super().missing() if find_spec("optimum") is not None else f"{self.package} isn't installed"

    def apply(self, model: PreTrainedModel, names: list[str], options: dict, calibration) -> None:
        from optimum.quanto import Calibration, freeze

        self.prepare(model, names, options)
        if self.calibrates:
            with Calibration(streamline=False):
                run_calibration(model, calibration)
        freeze(model)

    def prepare(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        from optimum.quanto import qtypes, quantize

        quantize(
            model,
            weights=qtypes[self.weights],
            activations=None if self.activations is None else qtypes[self.activations],
            include=names,
        )
        for name in names:
            layer = model.get_submodule(name)
            layer.disable_output_quantization()
            layer.train(model.training)


QUANTO_METHODS = (
    QuantoMethod("quanto_int8", "8 bits, absmax by channel", weights="qint8"),
    QuantoMethod("quanto_int4", "4 bits, zero point by group", weights="qint4"),
    QuantoMethod("quanto_int2", "2 bits, zero point by group", weights="qint2"),
    QuantoMethod("quanto_float8", "float8 e4m3, absmax by channel", weights="qfloat8_e4m3fn"),
    QuantoMethod(
        "quanto_int8_static", "8 bits, inputs to 8 bits over calibrated ranges", weights="qint8", activations="qint8"
    ),
)
