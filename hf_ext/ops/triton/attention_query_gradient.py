"""dQ of attention in Triton: a program holds a tile of queries and goes over the keys that it sees.

The other half of the backward pass, and its equations, are in `attention_key_gradient.py`.
"""

import triton
import triton.language as tl

from hf_ext.ops.triton.attention_tiles import (
    added_product,
    alibi_distance,
    finished_scores,
    load_tile,
    product,
    store_tile,
    visible,
    visible_range,
)


@triton.jit
def _query_gradient_range(
    query_grad,
    slope_grad,
    q,
    grad,
    normalizer,
    output_product,
    begin,
    end,
    key,
    value,
    batch,
    kv_head,
    k_batch,
    k_head,
    k_step,
    v_batch,
    v_head,
    v_step,
    num_keys,
    queries,
    row_starts,
    row_stops,
    query_positions,
    key_positions,
    slope,
    scaling,
    softcap,
    MASKED: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    INTERVALS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE_GRADIENT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One loop over tiles of keys. All rows of queries are (q, 1), but `slope_grad` is (q,). key_positions: a pointer."""
    for first in tl.range(begin, end, KEYS):
        k = load_tile(
            key, batch, kv_head, first, k_batch, k_head, k_step, num_keys, KEYS, D, BLOCK_D, MASKED, DESCRIPTORS
        )
        v = load_tile(
            value, batch, kv_head, first, v_batch, v_head, v_step, num_keys, KEYS, DV, BLOCK_DV, MASKED, DESCRIPTORS
        )
        keys = first + tl.arange(0, KEYS)
        scores = product(q, tl.trans(k), PRECISION, UPCAST)
        positions = keys
        if BIAS != 0:
            positions = tl.load(key_positions + keys, mask=keys < num_keys, other=0)
        scores, squashed = finished_scores(
            scores, scaling, softcap, slope, query_positions, positions[None, :], SOFTCAP, BIAS
        )
        weights = tl.exp2(scores - normalizer)
        if MASKED:
            sees = visible(queries, keys[None, :], row_starts, row_stops, num_keys, IS_CAUSAL, INTERVALS)
            weights = tl.where(sees, weights, 0.0)
        weights_grad = product(grad, tl.trans(v), PRECISION, UPCAST)
        scores_grad = weights * (weights_grad - output_product)
        if SLOPE_GRADIENT:
            slope_grad += tl.sum(scores_grad * alibi_distance(query_positions, positions[None, :], BIAS), 1)
        if SOFTCAP:
            scores_grad *= 1.0 - squashed * squashed
        query_grad = added_product(scores_grad.to(k.dtype), k, query_grad, PRECISION, UPCAST)
    return query_grad, slope_grad


@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def query_gradient_kernel(
    query,
    key,
    value,
    output_grad,
    log_sum_exp,
    delta,
    query_grad_out,
    slope_grad_out,
    interval_starts,
    interval_stops,
    all_query_positions,
    all_key_positions,
    slopes,
    q_batch,
    q_head,
    q_step,
    k_batch,
    k_head,
    k_step,
    v_batch,
    v_head,
    v_step,
    g_batch,
    g_head,
    g_step,
    dq_batch,
    dq_head,
    dq_step,
    intervals_batch,
    query_positions_batch,
    key_positions_batch,
    num_heads,
    num_queries,
    num_keys,
    num_tiles,
    scaling,
    softcap,
    G: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    INTERVALS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE_GRADIENT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dQ of one tile of queries. Grid: (B * H * num_tiles,). slope_grad_out: fp32 (B, H, T), each query's part."""
    program = tl.program_id(0)
    tile = program % num_tiles
    if IS_CAUSAL or INTERVALS:
        tile = num_tiles - 1 - tile
    batch = program // num_tiles // num_heads
    head = program // num_tiles % num_heads
    kv_head = head // G
    first_query = tile * QUERIES
    queries = first_query + tl.arange(0, QUERIES)
    real = queries < num_queries
    row = (batch * num_heads + head).to(tl.int64) * num_queries

    row_starts, row_stops = queries * 0, queries * 0 + num_keys
    if INTERVALS:
        offset = batch * intervals_batch
        row_starts = tl.load(interval_starts + offset + queries, mask=real, other=0)
        row_stops = tl.load(interval_stops + offset + queries, mask=real, other=num_keys)
        # whatever an interval says, nothing beside the keys is read
        row_starts = tl.maximum(row_starts, 0)
        row_stops = tl.minimum(row_stops, num_keys)
    query_positions = queries
    key_positions = all_key_positions
    slope = 0.0
    if BIAS != 0:
        query_positions = tl.load(all_query_positions + batch * query_positions_batch + queries, mask=real, other=0)
        key_positions = all_key_positions + batch * key_positions_batch
        slope = tl.load(slopes + head).to(tl.float32)

    q = load_tile(
        query, batch, head, first_query, q_batch, q_head, q_step, num_queries, QUERIES, D, BLOCK_D, True, False
    )
    grad = load_tile(
        output_grad, batch, head, first_query, g_batch, g_head, g_step, num_queries, QUERIES, DV, BLOCK_DV, True, False
    )
    normalizer = tl.load(log_sum_exp + row + queries, mask=real, other=float("inf"))
    output_product = tl.load(delta + row + queries, mask=real, other=0.0)
    query_grad = tl.zeros([QUERIES, BLOCK_D], dtype=tl.float32)
    slope_grad = tl.zeros([QUERIES], dtype=tl.float32)

    begin, whole_begin, whole_end, end = visible_range(
        first_query, row_starts, row_stops, num_queries, num_keys, QUERIES, KEYS, IS_CAUSAL, INTERVALS
    )
    for part in tl.static_range(3):
        if part != 0 or INTERVALS:
            query_grad, slope_grad = _query_gradient_range(
                query_grad,
                slope_grad,
                q,
                grad,
                normalizer[:, None],
                output_product[:, None],
                begin if part == 0 else (whole_begin if part == 1 else whole_end),
                whole_begin if part == 0 else (whole_end if part == 1 else end),
                key,
                value,
                batch,
                kv_head,
                k_batch,
                k_head,
                k_step,
                v_batch,
                v_head,
                v_step,
                num_keys,
                queries[:, None],
                row_starts[:, None],
                row_stops[:, None],
                query_positions[:, None],
                key_positions,
                slope,
                scaling,
                softcap,
                part != 1,
                KEYS,
                D,
                BLOCK_D,
                DV,
                BLOCK_DV,
                IS_CAUSAL,
                INTERVALS,
                SOFTCAP,
                BIAS,
                SLOPE_GRADIENT,
                DESCRIPTORS,
                PRECISION,
                UPCAST,
            )

    store_tile(
        query_grad_out,
        query_grad * scaling,
        batch,
        head,
        first_query,
        dq_batch,
        dq_head,
        dq_step,
        num_queries,
        QUERIES,
        D,
        BLOCK_D,
    )
    if SLOPE_GRADIENT:
        tl.store(slope_grad_out + row + queries, slope_grad, mask=real)
