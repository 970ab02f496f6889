"""What a way of quantizing a model has to offer: apply itself, give its tensors, and be put back from them."""

from abc import ABC, abstractmethod
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from hf_ext.models.configuration_choices import check_known


class Method(ABC):
    """A way of quantizing the linear layers of a model in place.

    Attributes:
        name: what users call it. summary: one line. package: what must be installed, as pip calls it; None for ours.
        module: what is then importable. needed_to_load: whether what it has made needs the package too.
        defaults: its options. calibrates: whether it needs batches of real data.
    """

    name: str
    summary: str
    package: str | None = None
    module: str | None = None
    needed_to_load: bool = True
    calibrates: bool = False

    def __init__(self, name: str, summary: str, defaults: dict | None = None, calibrates: bool = False):
        self.name, self.summary, self.calibrates = name, summary, calibrates
        self.defaults = defaults or {}

    def missing(self) -> str | None:
        """Why the method can't be used here, or None."""
        if self.module is None or find_spec(self.module) is not None:
            return None
        return f"{self.package} isn't installed; pip install {self.package}, or choose another method"

    def options(self, given: dict) -> dict:
        """`given` over the defaults.

        Raises:
            ValueError: an option that the method hasn't got.
        """
        if given and not self.defaults:
            raise ValueError(f"{next(iter(given))}: method={self.name!r} takes no options; leave it out")
        check_known(f"method {self.name}", given, self.defaults)
        return {**self.defaults, **given}

    @abstractmethod
    def apply(self, model: PreTrainedModel, names: list[str], options: dict, calibration) -> None:
        """Quantize the named layers in place."""

    def tensors(self, model: PreTrainedModel, names: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What is saved: plain tensors by name, and texts beside them."""
        return model.state_dict(), {}

    @abstractmethod
    def prepare(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        """Make the named layers such that they can take the saved tensors."""

    def load(self, model: PreTrainedModel, names: list[str], tensors: dict[str, torch.Tensor], texts: dict[str, str]):
        """Put saved tensors into a prepared model.

        Raises:
            RuntimeError: names or shapes that don't match.
        """
        model.load_state_dict(tensors)


class TrainableMethod(Method):
    """One that a model can be trained towards: rounded at each step over floats that are trained, then kept as integers."""

    def why_not_trainable(self) -> str | None:
        """Why this one of its kind can't, or None."""
        return None

    @abstractmethod
    def begin_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        """Have the named layers compute with rounded weights over floats that are trained."""

    @abstractmethod
    def end_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        """Keep the integers of what `begin_training` prepared."""
