"""Attention as the equation says it: the readable reference that every faster path is compared with.

B batch, H query heads, K key/value heads (K divides H), T queries, S keys, D head dim.

    scores  = scaling * Q K^T                                       Vaswani et al. 2017, arXiv 1706.03762, eq. 1
    scores  = softcap * tanh(scores / softcap)                      Gemma 2, arXiv 2408.00118, sec. 2
    scores  = scores + bias(distance)                               see `score_bias.py`
    weights = softmax(scores over the keys that the mask allows, and over the head's sink, which has no value)
                                                                    Xiao et al. 2023, arXiv 2309.17453, sec. 3.3
    output  = dropout(weights) V

A query that may see no key at all has zero weights and zero output.
"""

import torch

from hf_ext.ops.mask_rule import Mask, MaskRule
from hf_ext.ops.score_bias import ScoreBias


def repeat_key_value(states: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(B, K, S, D) -> (B, K * num_groups, S, D): each key/value head serves `num_groups` query heads in a row."""
    return states if num_groups == 1 else states.repeat_interleave(num_groups, dim=1)


def causal_mask(query_length: int, key_length: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Bool (T, S), True where key index <= query index; both counted from the first token."""
    return torch.ones(query_length, key_length, dtype=torch.bool, device=device).tril()


def eager_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: Mask = None,
    is_causal: bool = False,
    scaling: float | None = None,
    softcap: float | None = None,
    bias: torch.Tensor | ScoreBias | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention with its weights.

    Args:
        query: (B, H, T, D), any floating dtype.
        key: (B, K, S, D). value: (B, K, S, Dv).
        mask: bool (True = may see), or float added to the scores, broadcastable to (B, H, T, S), or a `MaskRule`.
        is_causal: query i sees keys 0..i; adds to `mask`.
        scaling: factor on the scores; default D ** -0.5.
        softcap: bound on the absolute scores, before bias and mask.
        bias: added to the scores: a `ScoreBias`, or a tensor broadcastable to (B, H, T, S).
        sinks: (H,) score of a key without a value, seen by every query: what a head gives to it, it gives to nothing.
        dropout: probability of dropping a weight; 0 outside training.

    Returns:
        output (B, H, T, Dv) in the dtype of `value`, weights (B, H, T, S) after dropout in the dtype of `query`.
    """
    num_groups = query.shape[1] // key.shape[1]
    key, value = repeat_key_value(key, num_groups), repeat_key_value(value, num_groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T, S)
    # softmax in at least fp32: transformers does so, and bf16 sums lose the small weights
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + (bias.dense() if isinstance(bias, ScoreBias) else bias)
    if isinstance(mask, MaskRule):
        mask = mask.dense()
    if is_causal:
        scores = scores.masked_fill(~causal_mask(*scores.shape[-2:], device=scores.device), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask

    # "forbidden" is -inf in our masks and the dtype's smallest number in transformers' additive ones
    forbidden = scores <= torch.finfo(query.dtype).min / 2
    scores = scores.masked_fill(forbidden, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1)
        weights = torch.softmax(torch.cat((scores, column), dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    weights = weights.masked_fill(forbidden.all(dim=-1, keepdim=True), 0.0).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=dropout > 0)
    return weights @ value, weights
