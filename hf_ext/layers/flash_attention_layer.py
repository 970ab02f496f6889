"""Flash attention as a module without weights: queries, keys and values in, their attention out.

B batch, T queries, S keys, H query heads, K key/value heads, D head dim, N tokens of all documents together.
"""

import torch
from torch import nn

from hf_ext.ops.flash_attention import flash_attention
from hf_ext.ops.mask_rule import MaskRule


class FlashAttention(nn.Module):
    """softmax(softmax_scale * Q K^T) V without the (T, S) matrix; Dao et al. 2022, arXiv 2205.14135, alg. 1.

    Takes what the modules of the flash-attn package take, in their layout, on any device, and returns the output alone.

    Args:
        softmax_scale: factor on the scores; default D ** -0.5.
        attention_dropout: probability of dropping a weight, in training.
        causal: a query sees itself and what came before. Where there are more keys than queries, both end together: the
            last query sees all keys (flash-attn's convention since 2.1; torch's lets both begin together).
        window_size: keys that a query sees before and after itself, itself not counted; -1 is all.
        softcap: bound on the absolute scores; None for none.
    """

    def __init__(
        self,
        softmax_scale: float | None = None,
        attention_dropout: float = 0.0,
        *,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float | None = None,
    ):
        super().__init__()
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"attention_dropout={attention_dropout}: must be at least 0 and below 1")
        if len(window_size) != 2 or any(not isinstance(size, int) or size < -1 for size in window_size):
            raise ValueError(f"window_size={window_size}: must be two numbers of keys, before and after; -1 is all")
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap={softcap}: must be above 0, or None for none")
        self.softmax_scale = softmax_scale
        self.attention_dropout = attention_dropout
        self.causal = causal
        self.window_size = tuple(window_size)
        self.softcap = softcap

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value}" for name, value in vars(self).items() if name[0] != "_" and name != "training"
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        *,
        causal: bool | None = None,
        key_padding_mask: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        cu_seqlens_k: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (B, T, H, D), or all three packed, (B, T, 3, H, D), and nothing else. With `cu_seqlens` the documents
                stand in one row: (N, H, D) or (N, 3, H, D).
            key: (B, S, K, D) or (N_k, K, D), K divides H. value: the same, its head dim may differ.
            causal: default the module's.
            key_padding_mask: (B, S), True or 1 for a token, False or 0 for padding (`torch.nn.MultiheadAttention` has it
                the other way round). Packed, a padded token's output is zero.
            cu_seqlens: (documents + 1,) integers, where each document starts, and N: 0, 3, 7 for 3 and 4 tokens.
                cu_seqlens_k: those of the keys; default the queries'.

        Returns:
            (B, T, H, Dv), or (N, H, Dv) with `cu_seqlens`. A query that may see no key gets zeros.

        Raises:
            ValueError: one line, for shapes that don't fit each other.
        """
        is_packed = key is None and value is None
        if is_packed:
            query, key, value = _unpack(query, "cu_seqlens" if cu_seqlens is not None else None)
        elif key is None or value is None:
            raise ValueError("key, value: one of them is missing; give both, or all three packed as the first argument")
        if cu_seqlens is None and cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k: given without cu_seqlens; give the queries' document starts too")
        if cu_seqlens is not None:
            if key_padding_mask is not None:
                raise ValueError("key_padding_mask, cu_seqlens: both are given; documents in one row have no padding")
            query, key, value = query[None], key[None], value[None]  # all documents are one row
        _check_shapes(query, key, value)
        causal = self.causal if causal is None else causal
        rule, is_causal = self._visibility(query, key, causal, is_packed, key_padding_mask, cu_seqlens, cu_seqlens_k)

        output = flash_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            mask=rule,
            is_causal=is_causal,
            scaling=self.softmax_scale,
            softcap=self.softcap,
            dropout=self.attention_dropout if self.training else 0.0,
        ).transpose(1, 2)
        return output if cu_seqlens is None else output[0]

    def _visibility(self, query, key, causal, is_packed, key_padding_mask, cu_seqlens, cu_seqlens_k):
        """The mask as a rule (or None), and whether to leave causality to the index alone, which skips tiles."""
        (B, T), S, device = query.shape[:2], key.shape[1], query.device
        before, after = self.window_size
        after = 0 if causal else after
        conditions = []

        # places are counted back from the end of the row or document, where queries and keys meet
        query_place, key_place = torch.arange(-T, 0, device=device), torch.arange(-S, 0, device=device)
        aligned = T == S
        if cu_seqlens is not None:
            query_document, query_place = _documents(cu_seqlens, T, device, "cu_seqlens")
            key_document, key_place = query_document, query_place
            if cu_seqlens_k is not None:
                key_document, key_place = _documents(cu_seqlens_k, S, device, "cu_seqlens_k")
                if len(cu_seqlens_k) != len(cu_seqlens):
                    raise ValueError(
                        f"cu_seqlens_k: {len(cu_seqlens_k) - 1} documents, cu_seqlens has {len(cu_seqlens) - 1}; "
                        "give each document its keys"
                    )
            elif not aligned:
                raise ValueError(f"cu_seqlens_k: missing for {S} keys to {T} queries; give the keys' document starts")
            aligned = cu_seqlens_k is None
            conditions.append(lambda batch, query, key: query_document[query] == key_document[key])
        if key_padding_mask is not None:
            is_token = _check_padding(key_padding_mask, B, S)
            if causal and not aligned and not bool(is_token[:, -1].all()):
                raise ValueError(
                    f"key_padding_mask: hides the last key, with which the last of {T} queries is aligned among {S} keys; "
                    "pad on the left, or pass documents in one row with cu_seqlens and cu_seqlens_k"
                )
            conditions.append(lambda batch, query, key: is_token[batch, key])
            if is_packed:
                conditions.append(lambda batch, query, key: is_token[batch, query])
        is_causal = causal and aligned  # then the index alone says it, within documents too
        if before >= 0:
            conditions.append(lambda batch, query, key: key_place[key] >= query_place[query] - before)
        if after >= 0 and not is_causal:
            conditions.append(lambda batch, query, key: key_place[key] <= query_place[query] + after)
        if not conditions:
            return None, is_causal

        def rule(batch, head, query, key):
            visible = conditions[0](batch, query, key)
            for condition in conditions[1:]:
                visible = visible & condition(batch, query, key)
            return visible

        return MaskRule(rule, B, T, S, device=device), is_causal


def _unpack(packed: torch.Tensor, documents: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(…, 3, H, D) -> three of (…, H, D)."""
    expected = "(tokens, 3, heads, head dim)" if documents else "(batch, tokens, 3, heads, head dim)"
    if packed.ndim != (4 if documents else 5) or packed.shape[-3] != 3:
        raise ValueError(f"query: shape {tuple(packed.shape)}, without key and value it must be {expected}")
    return packed.unbind(dim=-3)


def _check_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for name, states in {"query": query, "key": key, "value": value}.items():
        if states.ndim != 4:
            raise ValueError(
                f"{name}: {states.ndim} dims, must be (batch, tokens, heads, head dim), without batch where documents "
                "are told apart by cu_seqlens"
            )
        if states.dtype != query.dtype:
            raise ValueError(f"{name}: {states.dtype}, must be that of query, {query.dtype}; cast one of them")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"value: shape {tuple(value.shape)} must be that of key, {tuple(key.shape)}, up to the head dim"
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"key: shape {tuple(key.shape)} must have the batch and head dim of query, {tuple(query.shape)}"
        )
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"key: {key.shape[2]} heads must divide the {query.shape[2]} of query")


def _check_padding(key_padding_mask: torch.Tensor, B: int, S: int) -> torch.Tensor:
    if key_padding_mask.shape != (B, S):
        raise ValueError(
            f"key_padding_mask: shape {tuple(key_padding_mask.shape)} must be (batch, keys), {(B, S)}; 1 for a token"
        )
    if key_padding_mask.is_floating_point():
        raise ValueError(f"key_padding_mask: {key_padding_mask.dtype}, must be bool or integers; 1 for a token")
    return key_padding_mask.bool()


def _documents(cu_seqlens: torch.Tensor, N: int, device, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of N tokens the number of its document, and its place counted back from that document's end."""
    starts = cu_seqlens.tolist()
    if cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point() or len(starts) < 2:
        raise ValueError(
            f"{name}: must be integers of shape (documents + 1,), where each starts and where the last ends"
        )
    if starts[0] != 0 or starts[-1] != N or starts != sorted(starts):
        raise ValueError(f"{name}: must go up from 0 to the number of tokens, {N}; got {starts[0]} to {starts[-1]}")
    cu_seqlens = cu_seqlens.to(device=device, dtype=torch.int64)
    place = torch.arange(N, device=device)
    document = torch.searchsorted(cu_seqlens, place, right=True) - 1
    return document, place - cu_seqlens[document + 1]
