"""Biases on attention scores that depend on the distance of query and key, evaluated tile by tile like masks.

B batch, H heads, T queries, S keys. The distance of a key is its position minus the query's: negative in the past.

    ALiBi      slope_h * distance                     Press et al. 2021, arXiv 2108.12409, sec. 3
               -slope_h * |distance|                  where the future is seen too
    relative   table[h, bucket(distance)]             Raffel et al. 2019 (T5), arXiv 1910.10683, sec. 2.1
"""

import math
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class ScoreBias:
    """The bias of one attention call.

    Attributes:
        weight: ALiBi: slopes (H,). Relative: table (H, num_buckets), learnt.
        query_positions: (B or 1, T). key_positions: (B or 1, S); int64.
        max_distance: of the relative buckets, in tokens; None: ALiBi.
        bidirectional: whether the future is seen: it has buckets of its own (relative), or counts like the past (ALiBi).
    """

    weight: torch.Tensor
    query_positions: torch.Tensor
    key_positions: torch.Tensor
    max_distance: int | None = None
    bidirectional: bool = False

    def tile(self, query_start: int, query_stop: int, key_start: int, key_stop: int) -> torch.Tensor:
        """(B or 1, H, query_stop - query_start, key_stop - key_start) in the dtype of the weight."""
        distance = self._distance(query_start, query_stop, key_start, key_stop)
        if self.max_distance is None:
            return self.weight[None, :, None, None] * distance[:, None]
        return self.weight[:, self._buckets(distance)].transpose(0, 1)

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole (B or 1, H, T, S) bias, differentiable in the weight."""
        bias = self.tile(0, self.query_positions.shape[-1], 0, self.key_positions.shape[-1])
        return bias if dtype is None else bias.to(dtype)

    def accumulate_gradient(self, gradient: torch.Tensor, tile_gradient: torch.Tensor, start: tuple[int, int]) -> None:
        """Add a tile's part to the weight's `gradient`. tile_gradient: (B, H, q, k), whose corner is at `start`."""
        (q0, k0), (q, k) = start, tile_gradient.shape[-2:]
        distance = self._distance(q0, q0 + q, k0, k0 + k)
        if distance.shape[0] == 1:
            tile_gradient = tile_gradient.sum(dim=0, keepdim=True)
        if self.max_distance is None:
            gradient += (tile_gradient * distance[:, None]).sum(dim=(0, 2, 3))
        else:
            for row, buckets in zip(tile_gradient, self._buckets(distance), strict=True):
                gradient.index_add_(1, buckets.flatten(), row.flatten(1))

    def with_weight(self, weight: torch.Tensor) -> "ScoreBias":
        """The same bias of another weight: what backward holds instead of the graph's tensor."""
        return replace(self, weight=weight)

    def _distance(self, q0: int, q1: int, k0: int, k1: int) -> torch.Tensor:
        distance = self.key_positions[:, None, k0:k1] - self.query_positions[:, q0:q1, None]
        return -distance.abs() if self.bidirectional and self.max_distance is None else distance

    def _buckets(self, distance: torch.Tensor) -> torch.Tensor:
        return relative_buckets(distance, self.weight.shape[1], self.max_distance, self.bidirectional)


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """(H,) fp32: 2^(-8 i / H) for a power of two; else those of the next lower power, then every other one of the next."""
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * (i + 1) / power for i in range(power)]
    exponents += [4 * (2 * i + 1) / power for i in range(num_heads - power)]
    return torch.tensor([2.0**-e for e in exponents])


def relative_buckets(distance: torch.Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> torch.Tensor:
    """Bucket of each distance: one a token for the nearer half, then logarithmically wider up to `max_distance`.

    Args:
        distance: int64, key position - query position, any shape. One direction only: the future counts as distance 0.
    """
    if bidirectional:
        num_buckets = num_buckets // 2
        offset = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        offset = 0
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    steps = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + steps.long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, far)
