"""An exponential moving average of the weights, which generalizes better than the weights that training leaves.

    average ← d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) with t updates before this one

after every optimizer step: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging", in the form of
Morales-Brotons et al. 2024, arXiv 2411.18704. Without the warm-up, d = decay from the start, the initial weights stay
in it for 1 / (1 - decay) steps.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback


AVERAGE_NAME = "ema.safetensors"


class WeightAverage:
    """The average of a model's trainable parameters, tied ones once, in fp32 beside them: 4 bytes each.

    Buffers and frozen parameters are not averaged. While the average stands in for the weights (`in_place`) these are kept
    aside: as many bytes again as the trainable parameters have, at a time when there are no gradients.
    """

    def __init__(self, model: nn.Module, decay: float, *, has_warmup: bool = True):
        self.decay, self.has_warmup, self.num_updates = decay, has_warmup, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # a copy even where they are fp32 already
        self.averages = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}

    def current_decay(self) -> float:
        """d of the next update."""
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.has_warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        weight = 1 - self.current_decay()
        for name, parameter in self.parameters.items():
            self.averages[name].lerp_(parameter.detach().float(), weight)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the weights, each rounded to its own dtype."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])

    @contextmanager
    def in_place(self):
        """The model has the averaged weights inside, and bit for bit its own after it."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(own[name])

    def save(self, folder: str | Path) -> None:
        """Write the average and how many steps are in it, in fp32, for an exact resume."""
        tensors = {name: average.cpu().contiguous() for name, average in self.averages.items()}
        save_file(tensors, Path(folder) / AVERAGE_NAME, metadata={"num_updates": str(self.num_updates)})

    def load(self, folder: str | Path) -> None:
        """Take over what `save` wrote.

        Raises:
            ValueError: there is none, or it is another model's.
        """
        path = Path(folder) / AVERAGE_NAME
        if not path.is_file():
            raise ValueError(
                f"ema_decay={self.decay}: {folder} holds no average ({AVERAGE_NAME}); leave ema_decay out, or start anew"
            )
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            if there != set(self.averages):
                differ = sorted(there ^ set(self.averages))
                raise ValueError(f"{path}: averages other parameters than are trained now ({differ[0]}, …); start anew")
            for name, average in self.averages.items():
                saved = file.get_tensor(name)
                if saved.shape != average.shape:
                    raise ValueError(
                        f"{path}: {name} is {tuple(saved.shape)}, the model's {tuple(average.shape)}; start anew"
                    )
                average.copy_(saved)
            self.num_updates = int(file.metadata()["num_updates"])


class AverageWeights(TrainerCallback):
    """Keeps a Trainer's average: `trainer.average` from the first step of training to the last.

    Args:
        trainer: an `HfxTrainer` whose arguments set ema_decay.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        average = WeightAverage(self.trainer.model, args.ema_decay, has_warmup=args.ema_warmup)
        if self.trainer.resumed_from is not None:
            average.load(self.trainer.resumed_from)
        self.trainer.average = average

    def on_optimizer_step(self, args, state, control, **kwargs):
        if not self.trainer.step_was_skipped:
            self.trainer.average.update()

    def on_train_end(self, args, state, control, **kwargs):
        """The model is the average from here on; it has been loaded already where the best checkpoint's was wanted."""
        if not self.trainer.has_best_weights:
            self.trainer.average.copy_to_model()
        self.trainer.average = None
