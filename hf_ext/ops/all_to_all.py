"""Rows that lie in parts on several processes, for an attention that must see all of them: heads for tokens, and back.

    (B, H, T / P, D)  on each of P processes, some tokens of every head
        -> all-to-all ->  (B, H / P, T, D)   every token of some heads
    attention, each head by itself
        -> all-to-all ->  (B, H, T / P, D)

Ulysses, Jacobs et al. 2023, arXiv 2309.14509, sec. 3. Everything else in a transformer looks at a token alone, so that a
process never holds more than its part of a row's activations. Exact, forward and backward: the gradient of an exchange is
the exchange the other way.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist


# the processes that share rows, in the order of their parts; set by `sharing_rows`
_group: list[dist.ProcessGroup] = []


@contextlib.contextmanager
def sharing_rows(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within it `hfx_ulysses` takes rows for parts of rows: process i of `group` (default: all) has the i-th part."""
    _group.append(dist.group.WORLD if group is None else group)
    try:
        yield
    finally:
        _group.pop()


def rows_group() -> dist.ProcessGroup:
    """The processes that share rows.

    Raises:
        ValueError: none do.
    """
    if not _group:
        raise ValueError("attn_implementation='hfx_ulysses': no processes share rows; call the model in sharing_rows()")
    return _group[-1]


def tokens_for_heads(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, H, T / P, D), some tokens -> (B, H / P, T, D), some heads; H a multiple of P."""
    return _Exchange.apply(x, group, 1, 2)


def heads_for_tokens(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, H / P, T, D), some heads -> (B, H, T / P, D), some tokens."""
    return _Exchange.apply(x, group, 2, 1)


def repeat_heads(x: torch.Tensor, processes: int) -> torch.Tensor:
    """(B, K, S, D) -> (B, K r, S, D), each head r times in a row, the fewest times with which P divides them."""
    times = processes // math.gcd(x.shape[1], processes)
    return x if times == 1 else x.repeat_interleave(times, dim=1)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, split_dim: int, join_dim: int):
        ctx.exchange = (group, split_dim, join_dim)
        parts = torch.stack(x.chunk(dist.get_world_size(group), dim=split_dim))  # the i-th goes to process i
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return torch.cat(received.unbind(), dim=join_dim)

    @staticmethod
    def backward(ctx, grad):
        group, split_dim, join_dim = ctx.exchange
        return _Exchange.apply(grad.contiguous(), group, join_dim, split_dim), None, None, None
