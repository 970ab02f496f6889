"""A mask as a rule over indices: which key a query may see, without ever writing the (T, S) matrix down.

transformers builds its masks from small index functions (causal, padding, packed documents, windows). A `MaskRule` keeps
that function and evaluates it tile by tile, so that tiled attention needs memory linear in the sequence length.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


# (batch, head, query, key) index tensors that broadcast against each other -> bool, True where the query sees the key
IndexRule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MaskRule:
    """The mask of one attention call, B rows of T queries against S keys.

    Attributes:
        rule: index function; receives positions that already include the offsets below.
        batch_size, query_length, key_length: B, T and S.
        query_offset: absolute index of query 0 (tokens already in the cache); int or 0-d tensor.
        key_offset: absolute index of key 0 (tokens a sliding cache has dropped).
    """

    rule: IndexRule
    batch_size: int
    query_length: int
    key_length: int
    query_offset: int | torch.Tensor = 0
    key_offset: int = 0
    device: torch.device | str = "cpu"

    def tile(self, query_start: int, query_stop: int, key_start: int, key_stop: int) -> torch.Tensor:
        """Bool tile, broadcastable to (B, H, query_stop - query_start, key_stop - key_start)."""
        batch = torch.arange(self.batch_size, device=self.device)[:, None, None, None]
        head = torch.zeros(1, dtype=torch.long, device=self.device)[None, :, None, None]
        query = torch.arange(query_start, query_stop, device=self.device)[None, None, :, None] + self.query_offset
        key = torch.arange(key_start, key_stop, device=self.device)[None, None, None, :] + self.key_offset
        tile = self.rule(batch, head, query, key)
        return tile.expand(-1, -1, query_stop - query_start, key_stop - key_start)

    def contiguous(self) -> "MaskRule":
        """Itself: transformers' generation asks this of every mask."""
        return self

    def dense(self) -> torch.Tensor:
        """The whole (B, 1, T, S) bool mask: for the references and for looking at it."""
        return self.tile(0, self.query_length, 0, self.key_length).expand(self.batch_size, -1, -1, -1)


def sliding_window_rule(
    batch_size, query_length, key_length, sliding_window, device="cpu", *, is_causal: bool = True
) -> MaskRule:
    """A query sees itself and the `sliding_window - 1` keys before it, and after it unless `is_causal`; Beltagy et al. 2020,
    arXiv 2004.05150, sec. 3.1."""

    def rule(batch, head, query, key):
        if is_causal:
            return (key <= query) & (query - key < sliding_window)
        return (query - key).abs() < sliding_window

    return MaskRule(rule, batch_size, query_length, key_length, device=device)


Mask = torch.Tensor | MaskRule | None


def mask_tile(mask: Mask, query_start: int, query_stop: int, key_start: int, key_stop: int) -> torch.Tensor | None:
    """The part of `mask` (bool, additive float, rule or None) that one tile needs."""
    if mask is None:
        return None
    if isinstance(mask, MaskRule):
        return mask.tile(query_start, query_stop, key_start, key_stop)
    # a mask made for a longer (static) cache or a single broadcast row is sliced like the keys it belongs to
    rows = slice(query_start, query_stop) if mask.shape[-2] != 1 else slice(None)
    return mask[..., rows, key_start:key_stop]
