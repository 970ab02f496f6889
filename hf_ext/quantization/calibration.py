"""Real data through a model, to see what its layers read."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn


@torch.no_grad()
def run_calibration(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Give `model` each batch, inputs of its forward by name, as in evaluation."""
    was_training = model.training
    model.eval()
    for batch in batches:
        model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    model.train(was_training)


def observe_inputs(
    model: nn.Module, names: list[str], make: Callable[[], object], batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, object]:
    """For each named layer an observer that has seen all that the layer read."""
    observers = {name: make() for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.observe(inputs[0].detach())
        )
        for name, seen in observers.items()
    ]
    try:
        run_calibration(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
    return observers
