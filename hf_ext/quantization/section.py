"""The quantization section of a recipe: by which method, with what, and whether training shall know of it."""

from dataclasses import dataclass, field

from hf_ext.quantization.methods import find_method, find_trainable_method


@dataclass
class QuantizationArguments:
    """How the trained model is quantized."""

    method: str = field(default="int8", metadata={"help": "A method of `python -m hf_ext.quantization quantize`."})
    group_size: int | None = field(default=None, metadata={"help": "Inputs that share a scale; of int4 and int2."})
    observer: str | None = field(default=None, metadata={"help": "Of int8_static: minmax, percentile or mse."})
    exclude: list[str] | None = field(
        default=None, metadata={"help": "Last parts of names of layers that stay floats."}
    )
    calibration_rows: int = field(default=128, metadata={"help": "Training rows by which ranges are found."})
    aware: bool = field(default=False, metadata={"help": "Train with rounded weights (quantization-aware training)."})

    def __post_init__(self):
        method = find_trainable_method(self.method) if self.aware else find_method(self.method)
        method.options(self.options)
        if self.calibration_rows < 1:
            raise ValueError(f"quantization.calibration_rows={self.calibration_rows}: must be at least 1")

    @property
    def options(self) -> dict:
        """The method's own, where given."""
        return {name: getattr(self, name) for name in ("group_size", "observer") if getattr(self, name) is not None}
