"""What a target of an export is: a format that graphs are written in, and the engine that runs them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from hf_ext.export.parts import Part


@dataclass(frozen=True)
class Quantization:
    """A way to fewer bits. calibrates: whether it must see inputs.

    tolerance: largest difference from torch's numbers that is let pass, as a part of the largest output.
    """

    summary: str
    tolerance: float
    calibrates: bool = False


class Graph(ABC):
    """An exported graph, opened in its engine."""

    @abstractmethod
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Name -> output, on the CPU.

        Args:
            inputs: by name, "past_key_values.0.key"; those that the graph hasn't are left out. They are read where they
                lie, not copied, if the engine can, and so must not change while it runs.
        """


class Target(ABC):
    """One target.

    Attributes:
        name: as the user calls it. suffix: of the files. summary: half a line for the help.
        packages: modules that it needs. extra: of ours that installs them. distributions: whose versions are recorded.
        quantizations: by name.
        tolerance: of unquantized numbers, see `Quantization`.
        has_limits: whether a graph runs inputs up to some size only, which must be known when it is written.
    """

    name: str
    suffix: str
    summary: str
    packages: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    extra: str = "export"
    quantizations: Mapping[str, Quantization] = {}
    tolerance: float = 1e-4
    has_limits: bool = False

    def missing(self) -> str | None:
        """Why it can't be used here, in a few words with the remedy."""
        if find_spec("transformers.exporters") is None:
            return f"transformers {transformers.__version__} has no exporters; pip install 'transformers>=5.22'"
        absent = [package for package in self.packages if find_spec(package) is None]
        return f"{', '.join(absent)} isn't installed; pip install 'hf-ext[{self.extra}]'" if absent else None

    @abstractmethod
    def write(self, part: Part, inputs: dict, path: Path, limits: Mapping[str, int]) -> None:
        """Write one graph.

        Args:
            inputs: to trace it with. path: of the file; what belongs to it may lie beside it under names that begin alike.
            limits: largest sizes by what they count, as `Part.free` names them; for targets that have them.
        """

    def quantize(self, path: Path, quantization: str, calibration: Iterable[Mapping[str, torch.Tensor]] | None) -> None:
        """Replace a graph that was written by one of fewer bits.

        Args:
            quantization: one of `quantizations`.
            calibration: the graph's inputs, by their flat names, to be read once; None where it needs none.
        """
        raise NotImplementedError(f"{type(self).__name__} names quantizations and has no quantize")

    @abstractmethod
    def open(self, path: Path) -> Graph:
        """The graph of a file."""
