"""Learning-rate schedules as functions of the step, wrapped for the Trainer.

All begin with a linear warmup from 0 to 1 over `num_warmup_steps`, then
    cosine                   falls along half a cosine to `min_lr_ratio`; Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5
    warmup_stable_decay      stays at 1, then falls to `min_lr_ratio` over the last `decay_fraction` of the steps;
                             Hu et al. 2024, arXiv 2404.06395, sec. 4; Hägele et al. 2024, arXiv 2405.18392
"""

import difflib
import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


DECAY_FORMS = ("1-sqrt", "linear", "cosine")


def _warmup(step: int, num_warmup_steps: int) -> float | None:
    """Factor during the warmup, None after it."""
    return step / num_warmup_steps if step < num_warmup_steps else None


def _fall(progress: float, form: str) -> float:
    """1 at progress 0, 0 at progress 1."""
    progress = min(max(progress, 0.0), 1.0)
    if form == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - math.sqrt(progress) if form == "1-sqrt" else 1 - progress


def cosine(step: int, *, num_warmup_steps: int, num_training_steps: int, min_lr_ratio: float = 0.0) -> float:
    """Factor on the learning rate at `step`."""
    warming = _warmup(step, num_warmup_steps)
    if warming is not None:
        return warming
    progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return min_lr_ratio + (1 - min_lr_ratio) * _fall(progress, "cosine")


def warmup_stable_decay(
    step: int,
    *,
    num_warmup_steps: int,
    num_training_steps: int,
    decay_fraction: float = 0.2,
    decay_form: str = "1-sqrt",
    min_lr_ratio: float = 0.0,
) -> float:
    """Factor on the learning rate at `step`."""
    warming = _warmup(step, num_warmup_steps)
    if warming is not None:
        return warming
    num_decay_steps = round(decay_fraction * num_training_steps)
    progress = (step - (num_training_steps - num_decay_steps)) / max(1, num_decay_steps)
    return min_lr_ratio + (1 - min_lr_ratio) * _fall(progress, decay_form)


SCHEDULES = {"cosine": cosine, "warmup_stable_decay": warmup_stable_decay}


def check_schedule(name: str, *, num_warmup_steps: int, num_training_steps: int, **options) -> None:
    """Raises ValueError, one line, for what `create_schedule` can't make."""
    if name not in SCHEDULES:
        close = difflib.get_close_matches(name, SCHEDULES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"lr_scheduler_type={name!r}: must be one of {', '.join(SCHEDULES)}{hint}")
    known = ("min_lr_ratio",) if name == "cosine" else ("min_lr_ratio", "decay_fraction", "decay_form")
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"lr_scheduler_kwargs.{option}={value!r}: {name} takes {', '.join(known)}")
        if option == "decay_form":
            if value not in DECAY_FORMS:
                raise ValueError(f"lr_scheduler_kwargs.decay_form={value!r}: must be one of {', '.join(DECAY_FORMS)}")
        elif not 0 <= value <= 1:
            raise ValueError(f"lr_scheduler_kwargs.{option}={value}: must be a share, 0 to 1")
    decay_steps = round(options.get("decay_fraction", 0.2) * num_training_steps) if name != "cosine" else 0
    if num_warmup_steps < 0 or num_warmup_steps + decay_steps > num_training_steps:
        also = f" and {decay_steps} of decay" if decay_steps else ""
        raise ValueError(
            f"warmup_steps={num_warmup_steps}: {num_training_steps} steps of training can't hold them{also}; lower it"
        )


def create_schedule(
    optimizer: Optimizer, *, name: str, num_warmup_steps: int, num_training_steps: int, **options
) -> LambdaLR:
    """The schedule `name` over every group's own learning rate.

    Args:
        options: min_lr_ratio; for warmup_stable_decay also decay_fraction and decay_form.

    Raises:
        ValueError: unknown name or option, more warmup than training, shares outside 0 to 1.
    """
    steps = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    check_schedule(name, **steps, **options)
    # a partial of a module's function: it can be pickled, and keeps no state of its own to lose on resume
    return LambdaLR(optimizer, partial(SCHEDULES[name], **steps, **options))
