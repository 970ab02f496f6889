"""Masks as intervals: each query sees the keys from one index up to another, and none between them is hidden.

Causality, padding, sliding windows, packed documents and prefixes are all of this kind, alone and together, and two numbers
a query are all that a kernel has to read of them: it passes over the tiles of keys that no query of a tile sees, and looks
at no mask where all of them see all.

B batch, T queries, S keys.
"""

from dataclasses import dataclass

import torch

from hf_ext.ops.mask_rule import MaskRule


# (query, key) pairs of which a rule is asked at once: at eight bytes an index some hundred MB while the mask is made
PAIRS_AT_ONCE = 2**24


@dataclass(frozen=True)
class KeyIntervals:
    """Query t of row b sees the keys s with starts[b, t] <= s < stops[b, t]; none where they are equal.

    Attributes:
        starts, stops: int32 (B or 1, T), contiguous, between 0 and S.
    """

    starts: torch.Tensor
    stops: torch.Tensor

    def contiguous(self) -> "KeyIntervals":
        """Itself: transformers' generation asks this of every mask."""
        return self

    def dense(self, num_keys: int) -> torch.Tensor:
        """Bool (B or 1, 1, T, num_keys), True where the query sees the key: for the references."""
        keys = torch.arange(num_keys, device=self.starts.device)
        return ((keys >= self.starts[..., None]) & (keys < self.stops[..., None]))[:, None]

    def causal(self) -> "KeyIntervals":
        """The same, and query t sees no key after index t."""
        index = torch.arange(self.stops.shape[1], dtype=torch.int32, device=self.stops.device)
        stops = torch.minimum(self.stops, index + 1)
        return KeyIntervals(torch.minimum(self.starts, stops), stops)


def window_intervals(
    num_queries: int, num_keys: int, window: int, device: torch.device | str = "cpu", *, is_causal: bool = True
) -> KeyIntervals:
    """A query sees itself and the `window - 1` keys before it, and after it unless `is_causal`; as `sliding_window_rule`."""
    index = torch.arange(num_queries, dtype=torch.int32, device=device)[None]
    stops = (index + (1 if is_causal else window)).clamp(max=num_keys)
    return KeyIntervals(torch.minimum((index - window + 1).clamp(min=0), stops), stops)


def document_intervals(
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    num_queries: int,
    *,
    is_causal: bool,
    window: int | None = None,
) -> KeyIntervals:
    """Documents that lie side by side in one row: a query sees the keys of its own.

    Args:
        query_starts, key_starts: (N + 1,) integer, where each of N documents begins and the last one ends, as flash
            attention's `cu_seqlens`. They are the same in self-attention.
        is_causal: the last query of a document sees all its keys, each one before it one key less.
        window: tokens that a query sees, itself included.
    """
    sides = None if window is None else window - 1
    return bounded_document_intervals(
        query_starts, key_starts, num_queries, left=sides, right=0 if is_causal else sides
    )


def bounded_document_intervals(
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    num_queries: int,
    *,
    left: int | None = None,
    right: int | None = None,
) -> KeyIntervals:
    """As `document_intervals`, with the keys that a query sees on either side of its own place; None: all of them."""
    index = torch.arange(num_queries, device=query_starts.device)
    document = torch.searchsorted(query_starts[1:].contiguous(), index, right=True).clamp(max=len(query_starts) - 2)
    first, last = key_starts[document], key_starts[document + 1]
    own = last - query_starts[document + 1] + index  # the key that stands where the query does
    starts = first if left is None else torch.maximum(first, own - left)
    stops = last if right is None else torch.minimum(last, own + right + 1)
    stops = torch.where(index < query_starts[-1], stops, 0)  # what comes after the last document belongs to none
    starts = torch.minimum(starts, stops).clamp(min=0)
    stops = torch.maximum(starts, stops)
    return KeyIntervals(starts.int()[None], stops.int()[None])


def intervals_of(mask: MaskRule | torch.Tensor) -> KeyIntervals:
    """The intervals of a rule, or of a bool mask (B or 1, 1, T, S), True where the query sees the key.

    Time T * S a row, memory linear in both; where the values can be looked at there is one wait for the device.

    Raises:
        ValueError: the mask has holes, or differs by head, or is no bool one.
    """
    if isinstance(mask, MaskRule):
        num_queries, num_keys, batch_size = mask.query_length, mask.key_length, mask.batch_size
        step = max(1, PAIRS_AT_ONCE // max(1, batch_size * num_keys))
        parts = [
            mask.tile(q0, min(q0 + step, num_queries), 0, num_keys).expand(
                -1, -1, min(step, num_queries - q0), num_keys
            )
            for q0 in range(0, num_queries, step)
        ]
    else:
        if mask.dtype != torch.bool:
            raise ValueError(
                f"attention_mask: {str(mask.dtype).removeprefix('torch.')}, attn_implementation='hfx_triton' takes no "
                "additive masks; give a bool one, or choose eager, sdpa or hfx_tiled"
            )
        parts = [mask]
    found = [_interval_of_tile(part) for part in parts]
    starts, stops = (torch.cat([part[i] for part in found], dim=1) for i in (0, 1))
    whole = torch.stack([part[2] for part in found]).all()
    message = (
        "attention_mask: a query sees keys with others between them that it does not see, or sees others in each head; "
        "attn_implementation='hfx_triton' takes masks without holes, choose hfx_tiled, flex_attention or sdpa"
    )
    if torch.compiler.is_compiling():
        torch._assert_async(whole, message)
    elif not bool(whole):
        raise ValueError(message)
    return KeyIntervals(starts, stops)


def _interval_of_tile(visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bool (B, heads, q, S) -> starts and stops (B, q), and whether they say it all."""
    S = visible.shape[-1]
    index = torch.arange(S, dtype=torch.int32, device=visible.device)
    first = visible[:, 0]
    stops = (first * (index + 1)).amax(dim=-1)
    starts = torch.minimum(S - (first * (S - index)).amax(dim=-1), stops)
    whole = (first.sum(dim=-1) == stops - starts).all() & (visible == visible[:, :1]).all()
    return starts.int().contiguous(), stops.int().contiguous(), whole
