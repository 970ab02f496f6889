"""Dropout on the CPU from few random numbers: four elements share 64 random bits.

torch draws a number of its own for every element, one after the other on one thread, which in a small model's training
step costs as much as a tenth of its matrix products. Sixteen bits an element are enough: the probability is rounded to
1/65,536, and what is kept is scaled by the rounded one, so that the expectation stays exactly the input.
"""

import torch
from torch.nn import functional as F

from hf_ext.ops.fake_tensors import has_values


LEVELS = 2**16  # of a probability: those of an int16
LOWEST = torch.iinfo(torch.int16).min
ELEMENTS_A_DRAW = 4  # int16 in an int64


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """x * keep / (1 - p) with keep 0 with probability p, else 1, for each element by itself; Srivastava et al. 2014.

    Args:
        x: any shape, floating. p: in [0, 1]; on the CPU rounded to a multiple of 1/65,536, where it is not nearly 0 or 1.

    Returns:
        The same shape and dtype. For the backward pass a byte an element is kept.
    """
    threshold = round(p * LEVELS)
    if not 0 < threshold < LEVELS:
        return F.dropout(x, p)
    if not torch.compiler.is_compiling() and not has_values(x):
        # an estimate of memory: a byte an element is kept, as below and as torch's own on accelerators
        return _Masked.apply(x, torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p), 1 / (1 - p))
    if not _draws_bits(x):
        return F.dropout(x, p)
    draws = torch.empty(-(-x.numel() // ELEMENTS_A_DRAW), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= LOWEST + threshold
    return _Masked.apply(x, keep, LEVELS / (LEVELS - threshold))


class _Masked(torch.autograd.Function):
    """x * keep * scale; its gradient is the same function of the gradient."""

    @staticmethod
    def forward(ctx, x, keep, scale):
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        return _Masked.apply(grad, ctx.saved_tensors[0], ctx.scale), None, None


def _draws_bits(x: torch.Tensor) -> bool:
    """A plain tensor on the CPU that nobody traces or transforms."""
    return (
        not torch.compiler.is_compiling()  # first: it can't look at what follows
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.is_floating_point()
        and x.numel() > 0
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )
