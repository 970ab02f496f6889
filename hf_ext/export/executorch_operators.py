"""Operators that ExecuTorch 1.5.1 computes otherwise than torch or not at all, each in terms of others."""

import math
from collections.abc import Callable
from itertools import accumulate

import torch


def rewritten() -> dict[torch._ops.OpOverload, Callable]:
    """Operator -> function, as `torch.export.ExportedProgram.run_decompositions` takes them.

    A GELU by tanh becomes XNNPACK's, which is the exact one: off by 5e-4. Of an operator that gives several tensors its
    verifier takes the first dim of the first for their number, and so fixes it. A dim of one at the end is a reshape to
    XNNPACK, which it has for a single free dim only; as a view it stays outside. Scattering with a maximum isn't there.
    """
    aten = torch.ops.aten
    return {
        aten.gelu.default: gelu,
        aten.chunk.default: lambda x, chunks, dim=0: split(x, -(-x.shape[dim] // chunks), dim),
        aten.split.Tensor: split,
        aten.split_with_sizes.default: split,
        aten.unbind.int: lambda x, dim=0: [x.select(dim, i) for i in range(x.shape[dim])],
        aten.unsqueeze.default: unsqueeze,
        aten.stack.default: lambda tensors, dim=0: torch.cat([unsqueeze(x, dim) for x in tensors], dim),
        aten.repeat_interleave.self_int: repeat_interleave,
        aten.scatter_reduce.two: scatter_largest,
    }


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def split(x: torch.Tensor, sizes: int | list[int], dim: int = 0) -> list[torch.Tensor]:
    if isinstance(sizes, int):
        sizes = [min(sizes, x.shape[dim] - start) for start in range(0, x.shape[dim], sizes)]
    ends = list(accumulate(sizes))
    return [x.narrow(dim, end - size, size) for size, end in zip(sizes, ends, strict=True)]


def unsqueeze(x: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(x.shape)
    shape.insert(dim % (x.ndim + 1), 1)
    return x.reshape(shape)


def repeat_interleave(x: torch.Tensor, repeats: int, dim: int | None = None, output_size: int | None = None):
    if dim is None:
        return NotImplemented
    dim %= x.ndim
    return torch.stack([x] * repeats, dim + 1).flatten(dim, dim + 1)


def scatter_largest(x, dim, index, source, reduce: str, *, include_self: bool = True) -> torch.Tensor:
    """(…, D) by each of its D places: what is scattered there, or what is there already, whatever is largest."""
    if reduce != "amax" or not include_self or dim % x.ndim != x.ndim - 1:
        return NotImplemented
    goes_here = unsqueeze(index, -2) == unsqueeze(torch.arange(x.shape[-1]), -1)  # (…, D, those scattered)
    least = torch.iinfo(x.dtype).min
    return torch.maximum(x, torch.where(goes_here, unsqueeze(source, -2), least).amax(-1))
