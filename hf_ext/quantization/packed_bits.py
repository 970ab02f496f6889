"""Integers of 2 or 4 bits, side by side in bytes: torch has no type for them.

A byte holds 8 / bits neighbours of a row, the first of them in its lowest bits.
"""

import torch


PACKED = (2, 4)


def pack_bits(q: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., n) uint8 in 0 .. 2^bits - 1 -> (..., ceil(n * bits / 8)) uint8; what is missing from the last byte is 0."""
    per_byte = 8 // bits
    q = torch.nn.functional.pad(q, (0, -q.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    packed = q[..., 0].clone()
    for place in range(1, per_byte):
        packed |= q[..., place] << (bits * place)
    return packed


def unpack_bits(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """The (..., n) uint8 that were packed."""
    places = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(places, dim=-1).flatten(-2)[..., :n]
