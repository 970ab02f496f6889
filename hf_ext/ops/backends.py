"""Attention backends by name, in the one signature that transformers calls: `attend(module, query, key, value, mask, …)`.

`query` (B, H, T, D), `key` and `value` (B, K, S, D) -> output (B, T, H, D) and the weights, or None where a backend has
none. What a backend can't do is refused by name; nothing that would change the number is ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hf_ext.ops.all_to_all import heads_for_tokens, repeat_heads, rows_group, tokens_for_heads
from hf_ext.ops.eager_attention import eager_attention
from hf_ext.ops.flash_attention import flash_attention
from hf_ext.ops.kernel_choice import triton_missing
from hf_ext.ops.key_intervals import KeyIntervals, document_intervals, intervals_of, window_intervals
from hf_ext.ops.mask_rule import Mask, MaskRule, sliding_window_rule
from hf_ext.ops.score_bias import ScoreBias


# keyword arguments of transformers' attention calls that change the output, and that no backend here computes;
# `cache` is the paged one of continuous batching, which the attention call itself would have to read
UNSUPPORTED_OPTIONS = ("head_mask", "cache")


def eager_attention_forward(module, query, key, value, attention_mask: Mask, **kwargs):
    """`eager_attention` behind transformers' signature; the only backend that returns its weights."""
    options = attention_options("eager", module, query, key, attention_mask, **kwargs)
    output, weights = eager_attention(query, key, value, **options)
    return output.transpose(1, 2).contiguous(), weights


def tiled_attention_forward(module, query, key, value, attention_mask: Mask, **kwargs):
    """`flash_attention` behind transformers' signature."""
    options = attention_options("hfx_tiled", module, query, key, attention_mask, **kwargs)
    return flash_attention(query, key, value, **options).transpose(1, 2).contiguous(), None


def triton_attention_forward(module, query, key, value, attention_mask: Mask | KeyIntervals, **kwargs):
    """`triton_attention` behind transformers' signature; rows of packed documents may come with `cu_seq_lens_q` and `_k`."""
    missing = triton_missing()
    if missing is not None:
        raise ValueError(f"attn_implementation='hfx_triton': {missing}; choose sdpa or hfx_tiled")
    from hf_ext.ops.triton.triton_attention import triton_attention

    options = attention_options("hfx_triton", module, query, key, attention_mask, window_rule=_window, **kwargs)
    if attention_mask is None and kwargs.get("cu_seq_lens_q") is not None:
        is_causal = kwargs.get("is_causal")
        options["mask"] = document_intervals(
            kwargs["cu_seq_lens_q"],
            kwargs["cu_seq_lens_q" if kwargs.get("cu_seq_lens_k") is None else "cu_seq_lens_k"],
            query.shape[2],
            is_causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
            window=kwargs.get("sliding_window"),
        )
        options["is_causal"] = False
    return triton_attention(query, key, value, **options).transpose(1, 2).contiguous(), None


def _window(batch_size, query_length, key_length, sliding_window, device, *, is_causal: bool) -> KeyIntervals:
    return window_intervals(query_length, key_length, sliding_window, device, is_causal=is_causal)


def ulysses_attention_forward(
    module, query, key, value, attention_mask: Mask, position_ids: torch.Tensor | None = None, **kwargs
):
    """`hfx_tiled` over rows whose tokens lie in parts on several processes; see `all_to_all.py`.

    Args:
        query, key, value: of this process's tokens; each process has as many, the next process the next ones.
        position_ids: (1 or B, T) of these tokens, counted in the whole row.

    Raises:
        ValueError: a mask, heads that the processes can't divide, positions that aren't those of this part.
    """
    group = rows_group()
    processes, part = dist.get_world_size(group), dist.get_rank(group)
    if attention_mask is not None:
        raise ValueError("attn_implementation='hfx_ulysses' does not support a mask; give rows without padding")
    if query.shape[1] % processes:
        raise ValueError(
            f"num_attention_heads={query.shape[1]}: can't be shared by {processes} processes; use a divisor of it"
        )
    if position_ids is not None and position_ids.device.type == "cpu":
        first = part * query.shape[2]
        expected = torch.arange(first, first + query.shape[2])
        if not bool((position_ids == expected).all()):
            raise ValueError(
                f"position_ids: part {part} of the rows must have {expected[0]} to {expected[-1]}, one document a row"
            )
    key, value = repeat_heads(key, processes), repeat_heads(value, processes)
    query, key, value = (tokens_for_heads(x, group) for x in (query, key, value))
    output, _ = tiled_attention_forward(module, query, key, value, None, **kwargs)
    return heads_for_tokens(output.transpose(1, 2), group).transpose(1, 2).contiguous(), None


def unpadded_mask(
    *args, attention_mask: torch.Tensor | None = None, q_offset: int | torch.Tensor = 0, **kwargs
) -> None:
    """The mask that `hfx_ulysses` takes: none, for its attention knows of causality and windows by itself.

    Raises:
        ValueError: padding, or a cache.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("attention_mask: hfx_ulysses takes rows without padding; pack them")
    if isinstance(q_offset, torch.Tensor) or q_offset:
        raise ValueError(
            "past_key_values: hfx_ulysses is for training, it has no cache; use another attn_implementation"
        )


def attention_options(
    backend: str,
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: Mask | KeyIntervals,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    position_bias: torch.Tensor | ScoreBias | None = None,
    s_aux: torch.Tensor | None = None,
    window_rule: Callable = sliding_window_rule,
    **kwargs,
) -> dict:
    """What transformers passes to an attention call, as `eager_attention` and `flash_attention` take it.

    Without a mask, causality and window are the module's own; a single query is the newest token and sees every key that
    the cache has kept.

    Args:
        window_rule: makes the mask of a window, with the arguments of `sliding_window_rule`.

    Raises:
        ValueError: an option that changes the scores and that `backend` would ignore.
    """
    for name in UNSUPPORTED_OPTIONS:
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation={backend!r} does not support {name}; choose another implementation")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    windowed = attention_mask is None and sliding_window is not None and key.shape[2] > sliding_window
    newest_alone = is_causal and query.shape[2] == 1
    is_causal = is_causal and attention_mask is None and not newest_alone
    if windowed and not newest_alone:
        B, T, S = query.shape[0], query.shape[2], key.shape[2]
        attention_mask = window_rule(B, T, S, sliding_window, query.device, is_causal=is_causal)
    return {
        "mask": attention_mask,
        "is_causal": is_causal,
        "scaling": scaling,
        "softcap": softcap,
        "bias": position_bias,
        "sinks": s_aux,
        "dropout": dropout,
    }


# implementations that take values of another size than queries and keys, in linear memory
UNEQUAL_HEAD_DIMS = ("eager", "flex_attention", "hfx_tiled", "hfx_triton", "hfx_ulysses")


def with_equal_head_dims(implementation: str, attend: Callable) -> Callable:
    """`attend`, called with queries, keys and values of one size: zeros fill up the smaller ones and change no product.

    Flash kernels want it; without it torch's sdpa takes its slow path, quadratic in memory.
    """
    if implementation in UNEQUAL_HEAD_DIMS:
        return attend

    def attend_filled_up(module, query, key, value, attention_mask, **kwargs):
        D, value_dim = query.shape[-1], value.shape[-1]
        query, key = (torch.nn.functional.pad(x, (0, max(0, value_dim - D))) for x in (query, key))
        value = torch.nn.functional.pad(value, (0, max(0, D - value_dim)))
        output, weights = attend(module, query, key, value, attention_mask, **kwargs)
        return output[..., :value_dim], weights

    return attend_filled_up


def tiled_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **kwargs,
) -> MaskRule | None:
    """The mask that `hfx_tiled` takes: None where plain causal (or full) attention says it all, else a `MaskRule`.

    Args are those of transformers' mask functions; `attention_mask` is the 2-D padding mask (B, tokens seen), True for a
    token. A cache longer than that mask (static cache) holds nothing there yet: those keys are not visible.
    """
    padding = attention_mask
    if padding is not None and padding.shape[1] < kv_length + kv_offset:
        padding = torch.nn.functional.pad(padding, (0, kv_length + kv_offset - padding.shape[1]))
    if padding is not None and not torch.compiler.is_compiling() and bool(padding.all()):
        padding = None
    if padding is None and local_size is None:
        square = q_length == kv_length and isinstance(q_offset, int) and q_offset == kv_offset == 0
        if (allow_is_causal_skip and square) or allow_is_bidirectional_skip:
            return None

    if isinstance(q_offset, torch.Tensor):
        q_offset = q_offset.clone()  # a static cache counts on in place, and the rule is evaluated after that

    def rule(batch, head, query, key):
        visible = mask_function(batch, head, query, key)
        return visible if padding is None else visible & padding[batch, key]

    return MaskRule(rule, batch_size, q_length, kv_length, q_offset, kv_offset, device)


def triton_mask(*args, **kwargs) -> KeyIntervals | None:
    """The mask that `hfx_triton` takes: `tiled_mask`'s, as the interval of keys that each query sees.

    Raises:
        ValueError: the mask hides keys between others that the same query sees.
    """
    rule = tiled_mask(*args, **kwargs)
    return None if rule is None else intervals_of(rule)


@dataclass(frozen=True)
class Backend:
    """attend: the attention call. mask: transformers' mask function for it. missing: why it can't run here, or None."""

    attend: Callable
    mask: Callable
    missing: Callable[[], str | None] = lambda: None


# Names with "flash" in them are taken for the flash-attn package by transformers: hence `hfx_tiled`, `hfx_triton`.
BACKENDS: dict[str, Backend] = {
    "hfx_tiled": Backend(tiled_attention_forward, tiled_mask),
    "hfx_triton": Backend(triton_attention_forward, triton_mask, triton_missing),
    "hfx_ulysses": Backend(
        ulysses_attention_forward,
        unpadded_mask,
        lambda: None if dist.is_available() and dist.is_initialized() else "needs several processes",
    ),
}
