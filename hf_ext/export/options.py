"""What an export is asked for: one set of options for the Python function and for every command line."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import PretrainedConfig

from hf_ext.export.parts import MOST_ROWS, MOST_TOKENS
from hf_ext.export.targets import TARGETS
from hf_ext.models.configuration_choices import check_choice


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export_model`.

    Attributes:
        quantize: a name that the target has, None for the numbers as they are.
        calibration: path of texts for quantizations that calibrate: one a line, or JSON lines with "text" (and "target").
        task: as Optimum calls it, "text-generation"; None for the one that the model was saved for.
        tolerance: largest difference that is let pass, as a part of the largest output; None for the quantization's own.
        greedy_tokens: how many are compared, fewer where the model or `max_length` has no more positions.
        max_batch_size, max_length: largest inputs, of targets that reserve memory for them (executorch); None for 4 rows and
            for the model's own number of positions. The text that is compared is one row.
    """

    quantize: str | None = None
    calibration: str | Path | None = None
    task: str | None = None
    tolerance: float | None = None
    greedy_tokens: int = 16
    max_batch_size: int | None = None
    max_length: int | None = None

    def check(self, target: str) -> None:
        """Raises ValueError, one line, for a target that is unknown or missing here, or an option that it hasn't."""
        check_choice("to", target, TARGETS)
        made = TARGETS[target]
        reason = made.missing()
        if reason is not None:
            raise ValueError(f"to={target!r}: {reason}")
        able = ", ".join(made.quantizations) or "none at all"
        if self.quantize is not None and self.quantize not in made.quantizations:
            raise ValueError(f"quantize={self.quantize!r}: {target} can't; it can {able}")
        calibrates = self.quantize is not None and made.quantizations[self.quantize].calibrates
        if calibrates and self.calibration is None:
            raise ValueError(f"quantize={self.quantize!r}: needs texts to calibrate on; give calibration=texts.txt")
        if self.calibration is not None and not calibrates:
            raise ValueError(
                f"calibration={str(self.calibration)!r}: quantize={self.quantize!r} calibrates nothing; leave it out"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: must be above 0")
        if self.greedy_tokens < 1:
            raise ValueError(f"greedy_tokens={self.greedy_tokens}: must be at least 1")
        for name, least in (("max_batch_size", MOST_ROWS), ("max_length", MOST_TOKENS)):
            value = getattr(self, name)
            if value is not None and not made.has_limits:
                raise ValueError(f"{name}={value}: {target} takes any; leave it out")
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be at least {least}, with which graphs are compared")

    def limits(self, config: PretrainedConfig) -> dict[str, int]:
        """Largest sizes by what they count, see `hf_ext.export.parts.Part`.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        most = config.max_position_embeddings
        if (self.max_length or 0) > most:
            raise ValueError(f"max_length={self.max_length}: the model has {most} positions; give that or less")
        tokens = dict.fromkeys(("tokens", "cached", "kept", "seen", "source", "target"), self.max_length or most)
        return {"batch": self.max_batch_size or 4, "choices": 8, **tokens}


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that exports; `options_of` reads them."""
    can = "; ".join(f"{t.name}: {', '.join(t.quantizations)}" for t in TARGETS.values() if t.quantizations)
    parser.add_argument("-m", "--model", help="folder of a saved model of ours, or its name on the Hub")
    parser.add_argument("--to", help=f"target: {', '.join(TARGETS)}")
    parser.add_argument("--quantize", help=can)
    parser.add_argument("--calibration", help="texts for int8_static: one a line, or JSON lines with text (and target)")
    parser.add_argument("--task", help="as Optimum calls it, such as text-generation; default: what it was saved for")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference from torch that is let pass, as a part of the largest output",
    )
    parser.add_argument("--greedy_tokens", type=int, default=16, help="how many written tokens are compared")
    parser.add_argument("--max_batch_size", type=int, help="executorch: rows that memory is reserved for; default: 4")
    parser.add_argument("--max_length", type=int, help="executorch: likewise tokens of a row; default: all positions")
    parser.add_argument("--verify", action="store_true", help="check the export in OUT again, instead of making one")
    parser.add_argument("out", help="the folder to write")


def options_of(arguments: argparse.Namespace) -> ExportOptions:
    """The options that were parsed."""
    return ExportOptions(**{field.name: getattr(arguments, field.name) for field in fields(ExportOptions)})
