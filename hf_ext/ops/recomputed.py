"""Elementwise functions that keep their inputs for the backward pass and nothing else, and compute the rest again there.

A norm or a gated activation is a chain of cheap operations, of which autograd keeps every intermediate result: of a Llama
block's 42 d-sized floats a token that is a quarter. Chen et al. 2016, arXiv 1604.06174, sec. 4, with segments so small
that computing them again costs next to nothing.
"""

from collections.abc import Callable

import torch


def recomputed(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)`, the same number, differentiable as often as that.

    Args:
        function: one tensor out; deterministic, without state, and nothing in it that autocast would cast.
    """
    if (
        not torch.is_grad_enabled()
        or not any(tensor.requires_grad for tensor in tensors)
        or torch.compiler.is_compiling()  # the compiler decides itself what it keeps
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    ):
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx, grad):
        differentiable = torch.is_grad_enabled()  # a gradient of this gradient is wanted
        wanted = ctx.needs_input_grad[1:]
        tensors = ctx.saved_tensors
        if not differentiable:
            tensors = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        with torch.enable_grad():
            output = ctx.function(*tensors)
        inputs = [tensor for tensor, want in zip(tensors, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(output, inputs, grad, create_graph=differentiable))
        return None, *(next(found) if want else None for want in wanted)
