"""The attention kernels under the names, layouts and options of the flash-attn package, which transformers calls.

N tokens of all documents, B batch, T queries, S keys, H query heads, K key/value heads, D head dim. Causality and windows
are aligned at the end, as there: the last query of a document stands where its last key does.
"""

import torch

from hf_ext.ops.key_intervals import KeyIntervals, bounded_document_intervals
from hf_ext.ops.triton.triton_attention import triton_attention


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """Documents side by side, (N, H, D) and keys (N', K, D) -> (N, H, D); a query sees its own document.

    Args:
        cu_seqlens_q, cu_seqlens_k: int32 (documents + 1,), where each begins and the last one ends. The longest ones'
            lengths follow from them: max_seqlen_q and max_seqlen_k change nothing.
        dropout_p: must be 0. window_size: keys to the left and right that a query sees beside its own place, -1 all.
        softcap: 0 none. s_aux: (H,), scores of the sinks.

    Raises:
        ValueError: what the kernels don't compute.
    """
    intervals = _intervals(cu_seqlens_q, cu_seqlens_k, q.shape[0], causal, window_size)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return _attend(q, k, v, intervals, dropout_p, softmax_scale, softcap, s_aux)[0]


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T, H, D), keys and values (B, S, K, D) -> (B, T, H, D); args and errors as in `flash_attn_varlen_func`."""
    bounds = (torch.tensor([0, length], device=q.device) for length in (q.shape[1], k.shape[1]))
    intervals = _intervals(*bounds, q.shape[1], causal, window_size)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return _attend(q, k, v, intervals, dropout_p, softmax_scale, softcap, s_aux)


def _intervals(query_starts, key_starts, num_queries, causal, window_size) -> KeyIntervals:
    left, right = (None if size < 0 else size for size in window_size)
    return bounded_document_intervals(query_starts, key_starts, num_queries, left=left, right=0 if causal else right)


def _attend(q, k, v, intervals, dropout, scaling, softcap, sinks) -> torch.Tensor:
    output = triton_attention(
        q, k, v, mask=intervals, scaling=scaling, softcap=softcap or None, sinks=sinks, dropout=dropout
    )
    return output.transpose(1, 2)
