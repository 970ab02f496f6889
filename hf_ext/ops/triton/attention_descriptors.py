"""Tensors as the attention kernels read them: pointers and strides, or descriptors for the copy engine (TMA) of Hopper.

B batch, L tokens, D head dim. A descriptor is of a matrix and loads whole tiles, so it is made only where no tile can hold
rows of two heads, and only if the tile sizes ask for it: those that are chosen by default do not.
"""

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from hf_ext.ops.triton.attention_tiles import Tiles


def padded_dim(size: int) -> int:
    """Power of two that holds a head, and that the matrix units take."""
    return max(16, triton.next_power_of_2(size))


def sources(tensors: tuple, rows: tuple[int, ...], tiles: Tiles) -> tuple[list, list[int], bool]:
    """Tensors as the kernels read them tile by tile: descriptors for the copy engine if all can be, else pointers.

    Args:
        rows: of a tile of each.

    Returns:
        Sources, three numbers of addressing for each (see `load_tile`), and whether they are descriptors.
    """
    if tiles.descriptors:
        described = [describe(x, count) for x, count in zip(tensors, rows, strict=True)]
        if None not in described:
            return [source for source, _ in described], [n for _, address in described for n in address], True
    return list(tensors), [n for x in tensors for n in x.stride()[:3]], False


def describe(x: torch.Tensor, rows: int):
    """A descriptor of x (B, heads, L, D) as a matrix, and its addressing; None where it is no matrix of whole tiles."""
    B, heads, L, D = x.shape
    per_batch, per_head, step, _ = x.stride()
    aligned = x.data_ptr() % 16 == 0 and step * x.element_size() % 16 == 0
    if not aligned or L % rows or padded_dim(D) != D or x.element_size() != 2:
        return None
    if step == D and (per_head == L * D or heads == 1) and (per_batch == heads * L * D or B == 1):
        shape, address = [B * heads * L, D], (heads * L, L, 0)
    elif (per_batch == L * step or B == 1) and (heads - 1) * per_head + D <= step:
        shape, address = [B * L, (heads - 1) * per_head + D], (L, 0, per_head)
    else:
        return None
    return TensorDescriptor(x, shape, [step, 1], [rows, D]), address
