"""Losses and gradients that are not finite: the step that they would make is left out, and a run of them ends training.

The stock Trainer takes the step, after which every weight is NaN, logs 0.0, writes that over its checkpoints and ends well.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers.trainer_utils import get_last_checkpoint


class NonFiniteError(RuntimeError):
    """Training can't go on; the message is one line: the step, the last finite loss, where to go on from and how."""


class NonFiniteGuard:
    """Watches every optimizer step.

    Args:
        max_in_a_row: so many steps in a row that are not finite raise.
        output_dir: where checkpoints are.
        reduce: takes the mean of a tensor over the processes, so that all of them decide the same.
    """

    def __init__(self, max_in_a_row: int, output_dir: str, reduce: Callable[[torch.Tensor], torch.Tensor]):
        self.max_in_a_row, self.output_dir, self.reduce = max_in_a_row, output_dir, reduce
        self.num_in_a_row = self.num_skipped = 0
        self.last_finite: tuple[int, float] | None = None  # step, loss
        self._loss = None

    def add(self, loss: torch.Tensor) -> None:
        """Count the loss of one batch, a scalar, to the step that is being made; nothing waits for it."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss

    def is_finite(self, step: int, gradient_norm: torch.Tensor | float | None) -> bool:
        """Whether the step may be taken: on all processes or on none. On an accelerator this waits, once a step.

        Args:
            step: its number, from 1. gradient_norm: None where it is another's to judge (a loss scaler's).

        Raises:
            NonFiniteError: it is one too many in a row.
        """
        loss, self._loss = self._loss, None
        norm = 0.0 if gradient_norm is None else gradient_norm
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        norm = torch.as_tensor(norm, dtype=loss.dtype, device=loss.device)
        # a mean with one that isn't finite isn't either
        loss, norm = self.reduce(torch.stack([loss, norm])).tolist()
        if math.isfinite(loss):
            self.last_finite = (step, loss)
        if math.isfinite(loss) and math.isfinite(norm):
            self.num_in_a_row = 0
            return True
        self.num_in_a_row += 1
        self.num_skipped += 1
        if self.num_in_a_row >= self.max_in_a_row:
            what = "loss" if not math.isfinite(loss) else "gradient"
            times = f"{self.num_in_a_row} times in a row" if self.num_in_a_row > 1 else "once"
            last = "none before" if self.last_finite is None else "{1:.4g} at step {0}".format(*self.last_finite)
            raise NonFiniteError(
                f"step {step}: the {what} was not finite, {times} (max_non_finite_losses={self.max_in_a_row}; last finite "
                f"loss: {last}); {self._remedy()}"
            )
        return False

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raises NonFiniteError if a trainable weight is not finite: that is never saved."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        finite = [parameter.detach().isfinite().all().cpu() for _, parameter in named]
        for (name, _), is_finite in zip(named, finite, strict=True):
            if not is_finite:
                raise NonFiniteError(f"step {step}: {name} is not finite, nothing was saved; {self._remedy()}")

    def _remedy(self) -> str:
        last = get_last_checkpoint(self.output_dir) if Path(self.output_dir).is_dir() else None
        start = "start anew" if last is None else f"go on from {last}"
        how = "" if last is None else " (--allow_change optimizer)"
        return (
            f"{start} with a lower learning_rate, a longer warmup or a lower max_grad_norm{how}, or look into the rows"
        )
