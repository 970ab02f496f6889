"""Attention by Triton kernels, forward and backward: `flash_attention`'s numbers at the speed of a GPU's matrix units.

B batch, H query heads, K key/value heads, T queries, S keys, D head dim (up to 256), Dv of the values.

Inputs are fp32, fp16 or bf16, all sums are fp32. Products of fp32 are three of the matrix units' tf32, which is fp32's
accuracy to a few ulp. Nothing of size T * S is kept, no two programs add to one number: the same bits in every run.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
from torch.autograd.function import once_differentiable

from hf_ext.ops.key_intervals import KeyIntervals, intervals_of
from hf_ext.ops.mask_rule import Mask, MaskRule
from hf_ext.ops.score_bias import ScoreBias
from hf_ext.ops.triton.attention_decoding import MAX_ROWS, attend_split_kernel, join_splits_kernel
from hf_ext.ops.triton.attention_descriptors import padded_dim, sources
from hf_ext.ops.triton.attention_forward import attention_forward_kernel
from hf_ext.ops.triton.attention_key_gradient import key_gradient_kernel, output_products_kernel
from hf_ext.ops.triton.attention_query_gradient import query_gradient_kernel
from hf_ext.ops.triton.attention_tiles import (
    FORWARD_TILES,
    KEY_GRADIENT_TILES,
    QUERY_GRADIENT_TILES,
    Tiles,
    is_interpreted,
    tiles_for,
)


LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DECODING_KEYS = 64  # in a tile of a split
MAX_SPLITS = 64
ROWS_OF_PRODUCTS = 64  # in a program of the row sums of dO * O


@dataclass(frozen=True)
class AttentionTiles:
    """Tile sizes of the three kernels; None: those that were fastest, see `attention_tiles.py`."""

    forward: Tiles | None = None
    key_gradient: Tiles | None = None
    query_gradient: Tiles | None = None


@dataclass(frozen=True)
class AttentionOptions:
    """What of an attention call is no tensor. bidirectional: of an ALiBi bias."""

    is_causal: bool
    scaling: float
    softcap: float | None = None
    bidirectional: bool = False
    tiles: AttentionTiles = AttentionTiles()


def triton_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: Mask | KeyIntervals = None,
    is_causal: bool = False,
    scaling: float | None = None,
    softcap: float | None = None,
    bias: ScoreBias | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
    tiles: AttentionTiles = AttentionTiles(),
    splits: int | None = None,
) -> torch.Tensor:
    """`flash_attention` of `ops/flash_attention.py` in Triton.

    Args:
        query: (B, H, T, D). key: (B, K, S, D). value: (B, K, S, Dv); fp32, fp16 or bf16, all of one, the last dim contiguous
            or copied. Under autocast all are cast to its dtype.
        mask: `KeyIntervals`, or a rule or bool mask without holes, from which they are made at every call.
        is_causal: query i sees keys 0..i; adds to `mask`. scaling: above 0; default D ** -0.5.
        softcap, sinks: as in `eager_attention`. bias: ALiBi; its slopes get a gradient.
        dropout: must be 0.
        splits: programs that share the keys of one head, where T is small and no gradient is wanted; default by the size of
            the device.

    Returns:
        (B, H, T, Dv) in the dtype of `query`, laid out as (B, T, H, Dv). A query that may see no key gets zeros.

    Raises:
        ValueError: what the kernels don't compute.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    _check(query, key, value, scaling, bias, dropout)
    if mask is not None and not isinstance(mask, KeyIntervals):
        mask = _as_intervals(mask, query.shape[2], key.shape[2])
    _check_shapes(query, key, value, mask, bias, sinks)
    if mask is not None and is_causal:
        mask, is_causal = mask.causal(), False
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    starts, stops = (None, None) if mask is None else (mask.starts.contiguous(), mask.stops.contiguous())
    positions = (None, None)
    if bias is not None:
        positions = tuple(x.to(torch.int32).contiguous() for x in (bias.query_positions, bias.key_positions))
    options = AttentionOptions(is_causal, scaling, softcap, bias is not None and bias.bidirectional, tiles)
    slopes, sinks = (None if x is None else x.contiguous() for x in (None if bias is None else bias.weight, sinks))
    tensors = (query, key, value, slopes, sinks, starts, stops, *positions)
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():  # where Triton launches
        if not wants_gradient and query.shape[2] * (query.shape[1] // key.shape[1]) <= MAX_ROWS:
            return _decode(*tensors, options, splits)
        return _TritonAttention.apply(*tensors, options)[0]


def _check(query, key, value, scaling, bias, dropout) -> None:
    refused = "attn_implementation='hfx_triton'"
    if not (query.is_cuda or is_interpreted()):
        raise ValueError(
            f"{refused}: the tensors are on {query.device}, it needs a CUDA device; choose sdpa or hfx_tiled"
        )
    if dropout > 0:
        raise ValueError(
            f"{refused} does not support dropout={dropout}; set it to 0 or choose sdpa, hfx_tiled or eager"
        )
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        names = ", ".join(str(x.dtype).removeprefix("torch.") for x in (query, key, value))
        raise ValueError(f"{refused} takes float32, float16 or bfloat16, all of one; got {names}; choose hfx_tiled")
    if max(query.shape[-1], value.shape[-1]) > MAX_HEAD_DIM:
        size = max(query.shape[-1], value.shape[-1])
        raise ValueError(f"{refused} takes heads of up to {MAX_HEAD_DIM} dims, got {size}; choose sdpa or hfx_tiled")
    if scaling <= 0:
        raise ValueError(f"{refused}: scaling={scaling} must be above 0; choose hfx_tiled")
    if bias is not None and not isinstance(bias, ScoreBias):
        raise ValueError(f"{refused}: bias is a {type(bias).__name__}, must be a ScoreBias; choose sdpa or eager")
    if bias is not None and bias.max_distance is not None:
        raise ValueError(f"{refused} does not support position_embedding_type='relative'; choose sdpa or hfx_tiled")


def _as_intervals(mask: Mask, num_queries: int, num_keys: int) -> KeyIntervals:
    length = mask.key_length if isinstance(mask, MaskRule) else mask.shape[-1]
    if length != num_keys:
        raise ValueError(f"attention_mask: made for {length} keys, there are {num_keys}")
    intervals = intervals_of(mask)
    if intervals.starts.shape[1] != 1:
        return intervals
    return KeyIntervals(
        *(x.expand(-1, num_queries) for x in (intervals.starts, intervals.stops))
    )  # one for all queries


def _check_shapes(query, key, value, mask, bias, sinks) -> None:
    """A kernel follows addresses, not shapes: what doesn't go together would be read from elsewhere."""
    (B, H, T, D), (K, S) = query.shape, key.shape[1:3]
    if key.shape != (B, K, S, D) or value.shape[:3] != (B, K, S) or K == 0 or H % K:
        raise ValueError(
            f"query, key, value: shapes {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)} must be "
            "(B, H, T, D), (B, K, S, D), (B, K, S, Dv) with H a multiple of K"
        )
    expected = {}
    if isinstance(mask, KeyIntervals):
        expected |= {"mask.starts": (mask.starts, T), "mask.stops": (mask.stops, T)}
    if bias is not None:
        expected |= {"query_positions": (bias.query_positions, T), "key_positions": (bias.key_positions, S)}
    for name, (x, length) in expected.items():
        if x.shape not in ((1, length), (B, length)):
            raise ValueError(f"{name}: shape {tuple(x.shape)} must be ({B} or 1, {length})")
    for name, x in (("bias.weight", None if bias is None else bias.weight), ("sinks", sinks)):
        if x is not None and x.shape != (H,):
            raise ValueError(f"{name}: shape {tuple(x.shape)} must be ({H},), a number a head")


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(query, key, value, slopes, sinks, starts, stops, query_positions, key_positions, options):
        B, H, T, D = query.shape
        S, Dv = value.shape[2:]
        tiles = options.tiles.forward or tiles_for(FORWARD_TILES, query, max(D, Dv))
        output = query.new_empty(B, T, H, Dv).transpose(1, 2)
        log_sum_exp = query.new_empty(B, H, T, dtype=torch.float32)
        if output.numel() == 0:
            return output, log_sum_exp
        num_tiles = triton.cdiv(T, tiles.queries)
        rows = (tiles.queries, tiles.keys, tiles.keys)
        read, addresses, described = sources((query, key, value), rows, tiles)
        attention_forward_kernel[(B * H * num_tiles,)](
            *read,
            output,
            log_sum_exp,
            starts,
            stops,
            query_positions,
            key_positions,
            slopes,
            sinks,
            *addresses,
            *output.stride()[:3],
            *_batch_strides(starts, query_positions, key_positions),
            H,
            T,
            S,
            num_tiles,
            options.scaling,
            options.softcap or 0.0,
            **_constants(query, key, value, starts, slopes, options, tiles),
            SINKS=sinks is not None,
            DESCRIPTORS=described,
        )
        return output, log_sum_exp

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, output_grad, _):
        *tensors, output, log_sum_exp = ctx.saved_tensors
        query, key, value, slopes, sinks, starts, stops, query_positions, key_positions = tensors
        options = ctx.options
        if output.numel() == 0:
            return *(torch.zeros_like(x) for x in (query, key, value)), *(None,) * 7
        if output_grad.stride(-1) != 1:
            output_grad = output_grad.contiguous()
        delta = output_products(output, output_grad)
        kept = (log_sum_exp, delta, starts, stops, query_positions, key_positions, slopes)
        key_grad, value_grad = key_gradients(query, key, value, output_grad, *kept, options)
        wants_slopes = slopes is not None and ctx.needs_input_grad[3]
        query_grad, slope_parts = query_gradient(query, key, value, output_grad, *kept, options, wants_slopes)
        slopes_grad = slope_parts.sum(dim=(0, 2)).to(slopes.dtype) if wants_slopes else None
        sinks_grad = None
        if sinks is not None:
            sink_weights = torch.exp2(sinks.float()[None, :, None] * LOG2_E - log_sum_exp)
            sinks_grad = -(sink_weights * delta).sum(dim=(0, 2)).to(sinks.dtype)
        return query_grad, key_grad, value_grad, slopes_grad, sinks_grad, *(None,) * 5


def output_products(output: torch.Tensor, output_grad: torch.Tensor) -> torch.Tensor:
    """rowsum(dO * O), fp32 (B, H, T)."""
    B, H, T, Dv = output.shape
    delta = output.new_empty(B, H, T, dtype=torch.float32)
    num_tiles = triton.cdiv(T, ROWS_OF_PRODUCTS)
    output_products_kernel[(B * H * num_tiles,)](
        output,
        output_grad,
        delta,
        *output.stride()[:3],
        *output_grad.stride()[:3],
        H,
        T,
        num_tiles,
        QUERIES=ROWS_OF_PRODUCTS,
        DV=Dv,
        BLOCK_DV=padded_dim(Dv),
    )
    return delta


def key_gradients(
    query,
    key,
    value,
    output_grad,
    log_sum_exp,
    delta,
    starts,
    stops,
    query_positions,
    key_positions,
    slopes,
    options: AttentionOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dK and dV."""
    T, D = query.shape[2:]
    B, K, S, Dv = value.shape
    key_grad, value_grad = _empty_like(key), _empty_like(value)
    tiles = options.tiles.key_gradient or tiles_for(KEY_GRADIENT_TILES, query, max(D, Dv))
    num_tiles = triton.cdiv(S, tiles.keys)
    first_queries = last_queries = None
    if starts is not None:
        first_queries, last_queries = _queries_of_key_tiles(starts, stops, num_tiles, tiles.keys)
    (q, grad), addresses, described = sources((query, output_grad), (tiles.queries, tiles.queries), tiles)
    key_gradient_kernel[(B * K * num_tiles,)](
        q,
        key,
        value,
        grad,
        log_sum_exp,
        delta,
        key_grad,
        value_grad,
        starts,
        stops,
        first_queries,
        last_queries,
        query_positions,
        key_positions,
        slopes,
        *addresses[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *addresses[3:],
        *key_grad.stride()[:3],
        *value_grad.stride()[:3],
        *_batch_strides(starts, first_queries, query_positions, key_positions),
        K,
        T,
        S,
        num_tiles,
        options.scaling,
        options.softcap or 0.0,
        **_constants(query, key, value, starts, slopes, options, tiles),
        DESCRIPTORS=described,
    )
    return key_grad, value_grad


def query_gradient(
    query,
    key,
    value,
    output_grad,
    log_sum_exp,
    delta,
    starts,
    stops,
    query_positions,
    key_positions,
    slopes,
    options: AttentionOptions,
    wants_slopes: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dQ, and what each query adds to the gradient of its head's slope, fp32 (B, H, T), if wanted."""
    B, H, T, D = query.shape
    S, Dv = value.shape[2:]
    query_grad = _empty_like(query)
    tiles = options.tiles.query_gradient or tiles_for(QUERY_GRADIENT_TILES, query, max(D, Dv))
    num_tiles = triton.cdiv(T, tiles.queries)
    read, addresses, described = sources((key, value), (tiles.keys, tiles.keys), tiles)
    slope_parts = torch.empty_like(log_sum_exp) if wants_slopes else None
    query_gradient_kernel[(B * H * num_tiles,)](
        query,
        *read,
        output_grad,
        log_sum_exp,
        delta,
        query_grad,
        slope_parts,
        starts,
        stops,
        query_positions,
        key_positions,
        slopes,
        *query.stride()[:3],
        *addresses,
        *output_grad.stride()[:3],
        *query_grad.stride()[:3],
        *_batch_strides(starts, query_positions, key_positions),
        H,
        T,
        S,
        num_tiles,
        options.scaling,
        options.softcap or 0.0,
        **_constants(query, key, value, starts, slopes, options, tiles),
        SLOPE_GRADIENT=wants_slopes,
        DESCRIPTORS=described,
    )
    return query_grad, slope_parts


def _decode(query, key, value, slopes, sinks, starts, stops, query_positions, key_positions, options, splits):
    B, H, T = query.shape[:3]
    K, S, Dv = value.shape[1:]
    G = H // K
    output = query.new_empty(B, T, H, Dv).transpose(1, 2)
    if output.numel() == 0:
        return output
    most = min(MAX_SPLITS, max(1, triton.cdiv(S, DECODING_KEYS)))
    if splits is None:  # two programs for each multiprocessor
        splits = triton.cdiv(2 * _num_multiprocessors(query.device), B * K)
    splits = max(1, min(splits, most))
    keys_per_split = triton.cdiv(triton.cdiv(S, splits), DECODING_KEYS) * DECODING_KEYS
    partial_output = query.new_empty(B, K, splits, G * T, Dv, dtype=torch.float32)
    partial_sums = query.new_empty(B, K, splits, G * T, dtype=torch.float32)
    tiles = Tiles(max(16, triton.next_power_of_2(G * T)), DECODING_KEYS)
    constants = _constants(query, key, value, starts, slopes, options, tiles)
    constants["ROWS"] = constants.pop("QUERIES")
    attend_split_kernel[(B * K * splits,)](
        query,
        key,
        value,
        partial_output,
        partial_sums,
        starts,
        stops,
        query_positions,
        key_positions,
        slopes,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *_batch_strides(starts, query_positions, key_positions),
        K,
        T,
        S,
        splits,
        keys_per_split,
        options.scaling,
        options.softcap or 0.0,
        **constants,
    )
    join_splits_kernel[(B * H * T,)](
        partial_output,
        partial_sums,
        output,
        sinks,
        *output.stride()[:3],
        K,
        T,
        splits,
        G=G,
        SPLITS=triton.next_power_of_2(splits),
        DV=Dv,
        BLOCK_DV=padded_dim(Dv),
        SINKS=sinks is not None,
    )
    return output


def _constants(query, key, value, starts, slopes, options: AttentionOptions, tiles: Tiles) -> dict:
    """What each attention kernel is compiled for."""
    D, Dv = query.shape[-1], value.shape[-1]
    bias = 0 if slopes is None else 2 if options.bidirectional else 1
    return {
        "G": query.shape[1] // key.shape[1],
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "D": D,
        "BLOCK_D": padded_dim(D),
        "DV": Dv,
        "BLOCK_DV": padded_dim(Dv),
        "IS_CAUSAL": options.is_causal,
        "INTERVALS": starts is not None,
        "SOFTCAP": options.softcap is not None,
        "BIAS": bias,
        "PRECISION": "tf32x3" if query.dtype == torch.float32 else "tf32",  # read for fp32 alone
        "UPCAST": is_interpreted() and query.dtype == torch.bfloat16,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        **({} if tiles.registers is None or is_interpreted() else {"maxnreg": tiles.registers}),
    }


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    """Room for a gradient, laid out as `x` where that has every number once and a head's dims side by side."""
    return x.new_empty(x.shape) if x.stride(-1) != 1 or 0 in x.stride() else torch.empty_like(x)


def _batch_strides(*tensors: torch.Tensor | None) -> list[int]:
    """Elements from one row of the batch to the next; 0 where all share one."""
    return [0 if x is None or x.shape[0] == 1 else x.stride(0) for x in tensors]


def _queries_of_key_tiles(starts, stops, num_tiles: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 (B or 1, num_tiles): the first query that sees a key of each tile, and the one after the last."""
    begins = torch.arange(num_tiles, device=starts.device, dtype=torch.int32) * keys
    sees = (starts[..., None] < begins + keys) & (stops[..., None] > begins) & (starts < stops)[..., None]
    index = torch.arange(starts.shape[1], device=starts.device, dtype=torch.int32)[:, None]
    first = torch.where(sees, index, starts.shape[1]).amin(dim=1)
    last = torch.where(sees, index + 1, 0).amax(dim=1)
    return first.int().contiguous(), last.int().contiguous()


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
