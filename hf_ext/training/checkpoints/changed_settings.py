"""Rates, decay and schedule that were changed on purpose before a resume.

What an optimizer and a schedule load from a checkpoint overwrites them: without this, a learning rate that is asked for
now would have no effect.
"""

from contextlib import contextmanager

from torch.optim.lr_scheduler import LambdaLR


@contextmanager
def settings_kept(optimizer, schedule):
    """What is loaded inside brings states alone: the settings stay those of now, at the step that was reached.

    Args:
        optimizer, schedule: as they were made for this run. Other schedules than `LambdaLR`, such as those that follow a
            metric, have the rate among their states: it stays the one that is loaded.
    """
    groups = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    rates = list(schedule.base_lrs) if isinstance(schedule, LambdaLR) else None
    yield
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    if rates is not None:
        factors = [of_step(schedule.last_epoch) for of_step in schedule.lr_lambdas]
        schedule.base_lrs = rates
        schedule._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate
