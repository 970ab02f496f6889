"""Tensors that have a shape but no values: on the meta device, or torch's fakes of another device.

A model is run on them to see what a step would compute and keep (`hf_ext/training/scaling`), at no cost in memory. What
looks at values, to check them or to save work, must ask first.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: torch.Tensor) -> bool:
    """Whether there is anything to look at."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
