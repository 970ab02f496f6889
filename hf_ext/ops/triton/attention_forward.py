"""Forward pass of attention in one Triton kernel: a program for each tile of queries, keys and values come tile by tile.

B batch, H query heads, K key/value heads, G = H / K query heads a group, T queries, S keys, D head dim, Dv of the values.

The online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867) of Dao 2023, arXiv 2307.08691, alg. 1: the accumulator is
divided by the sum once, at the end. Scores are kept in units of log 2, for the hardware has exp2. Keys that all queries of
the tile see are a loop of their own, without a mask; those that none sees are passed over.
"""

import triton
import triton.language as tl

from hf_ext.ops.triton.attention_tiles import (
    added_product,
    finished_scores,
    load_tile,
    product,
    store_tile,
    visible,
    visible_range,
)


@triton.jit
def _attend_range(
    accumulator,
    maximum,
    total,
    q,
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
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One loop over tiles of keys. queries, row_starts, row_stops, query_positions: (q, 1). key_positions: a pointer."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    for first in tl.range(begin, end, KEYS):
        k = load_tile(
            key, batch, kv_head, first, k_batch, k_head, k_step, num_keys, KEYS, D, BLOCK_D, MASKED, DESCRIPTORS
        )
        scores = product(q, tl.trans(k), PRECISION, UPCAST)
        keys = first + tl.arange(0, KEYS)
        if SOFTCAP or BIAS != 0:
            if BIAS != 0:
                positions = tl.load(key_positions + keys, mask=keys < num_keys, other=0)[None, :]
            else:
                positions = keys[None, :]
            scores, _ = finished_scores(scores, scaling, softcap, slope, query_positions, positions, SOFTCAP, BIAS)
            factor = 1.0
        else:
            factor = scaling * LOG2_E  # multiplied where it costs nothing, with the subtraction of the maximum
        if MASKED:
            scores = tl.where(
                visible(queries, keys[None, :], row_starts, row_stops, num_keys, IS_CAUSAL, INTERVALS),
                scores,
                float("-inf"),
            )
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * factor)
        if MASKED:
            # a row that has seen no key yet has maximum -inf: shift by 0 there, exp2(-inf) is the 0 we want
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        else:
            shift = new_maximum
        weights = tl.exp2(scores * factor - shift[:, None])
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 1)
        accumulator = accumulator * decay[:, None]
        v = load_tile(
            value, batch, kv_head, first, v_batch, v_head, v_step, num_keys, KEYS, DV, BLOCK_DV, MASKED, DESCRIPTORS
        )
        accumulator = added_product(weights.to(v.dtype), v, accumulator, PRECISION, UPCAST)
        maximum = new_maximum
    return accumulator, maximum, total


# numbers that change from call to call and say nothing about addresses: no kernel of its own for each kind of them
@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def attention_forward_kernel(
    query,
    key,
    value,
    output,
    log_sum_exp,
    interval_starts,
    interval_stops,
    all_query_positions,
    all_key_positions,
    slopes,
    sinks,
    q_batch,
    q_head,
    q_step,
    k_batch,
    k_head,
    k_step,
    v_batch,
    v_head,
    v_step,
    o_batch,
    o_head,
    o_step,
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
    SINKS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: (B * H * num_tiles,). log_sum_exp: fp32 (B, H, T) in units of log 2, +inf for a query that sees no key."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    program = tl.program_id(0)
    tile = program % num_tiles
    if IS_CAUSAL or INTERVALS:
        tile = num_tiles - 1 - tile  # the later ones have more to do, and start first
    batch = program // num_tiles // num_heads
    head = program // num_tiles % num_heads
    kv_head = head // G
    first_query = tile * QUERIES
    queries = first_query + tl.arange(0, QUERIES)
    real = queries < num_queries

    row_starts, row_stops = queries * 0, queries * 0 + num_keys
    if INTERVALS:
        offset = batch * intervals_batch
        row_starts = tl.load(interval_starts + offset + queries, mask=real, other=0)
        row_stops = tl.load(interval_stops + offset + queries, mask=real, other=num_keys)
        # whatever an interval says, nothing beside the keys is read
        row_starts = tl.maximum(row_starts, 0)
        row_stops = tl.minimum(row_stops, num_keys)
    query_positions = queries
    slope = 0.0
    key_positions = all_key_positions
    if BIAS != 0:
        query_positions = tl.load(all_query_positions + batch * query_positions_batch + queries, mask=real, other=0)
        key_positions = all_key_positions + batch * key_positions_batch
        slope = tl.load(slopes + head).to(tl.float32)

    q = load_tile(
        query, batch, head, first_query, q_batch, q_head, q_step, num_queries, QUERIES, D, BLOCK_D, True, DESCRIPTORS
    )
    accumulator = tl.zeros([QUERIES, BLOCK_DV], dtype=tl.float32)
    if SINKS:  # a key whose value is zero, seen before all others
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        maximum = tl.zeros([QUERIES], dtype=tl.float32) + sink
        total = tl.zeros([QUERIES], dtype=tl.float32) + 1.0
    else:
        maximum = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
        total = tl.zeros([QUERIES], dtype=tl.float32)

    begin, whole_begin, whole_end, end = visible_range(
        first_query, row_starts, row_stops, num_queries, num_keys, QUERIES, KEYS, IS_CAUSAL, INTERVALS
    )
    for part in tl.static_range(3):
        # part 0 before what all see (there is none without intervals), 1 what all see, 2 after it
        if part != 0 or INTERVALS:
            accumulator, maximum, total = _attend_range(
                accumulator,
                maximum,
                total,
                q,
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
                DESCRIPTORS,
                PRECISION,
                UPCAST,
            )

    seen = total > 0
    accumulator = accumulator * tl.where(seen, 1.0 / tl.where(seen, total, 1.0), 0.0)[:, None]
    store_tile(
        output, accumulator, batch, head, first_query, o_batch, o_head, o_step, num_queries, QUERIES, DV, BLOCK_DV
    )
    # +inf where nothing was seen: exp2(scores - inf) = 0 gives zero weights in backward too
    normalizer = tl.where(seen, maximum + tl.log2(tl.where(seen, total, 1.0)), float("inf"))
    tl.store(log_sum_exp + (batch * num_heads + head).to(tl.int64) * num_queries + queries, normalizer, mask=real)
