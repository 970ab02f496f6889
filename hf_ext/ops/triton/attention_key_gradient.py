"""Backward pass of attention in Triton: the weights are computed again, tile by tile, from the log-sum-exp that was kept.

B batch, H query heads, K key/value heads, G = H / K query heads a group, T queries, S keys, D head dim, Dv of the values.

Dao 2023, arXiv 2307.08691, alg. 2, as two kernels: the one here holds a tile of keys and goes over the queries of all heads
of its group (dK, dV), the one in `attention_query_gradient.py` holds a tile of queries and goes over the keys (dQ). Scores
and dP are so computed twice, seven products for five, and nothing is ever added up by two programs: the same numbers in
every run, and no buffer in fp32.

    P = exp2(scores - log_sum_exp),   dP = dO V^T,   dS = P * (dP - rowsum(dO * O)),
    dV = P^T dO,   dK = scaling * dS^T Q,   dQ = scaling * dS K
"""

import triton
import triton.language as tl

from hf_ext.ops.triton.attention_tiles import added_product, finished_scores, load_tile, product, store_tile, visible


@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def output_products_kernel(
    output,
    output_grad,
    delta,
    o_batch,
    o_head,
    o_step,
    g_batch,
    g_head,
    g_step,
    num_heads,
    num_queries,
    num_tiles,
    QUERIES: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """delta (B, H, T) fp32 = rowsum(dO * O). Grid: (B * H * num_tiles,)."""
    program = tl.program_id(0)
    first = program % num_tiles * QUERIES
    batch = program // num_tiles // num_heads
    head = program // num_tiles % num_heads
    o = load_tile(output, batch, head, first, o_batch, o_head, o_step, num_queries, QUERIES, DV, BLOCK_DV, True, False)
    grad = load_tile(
        output_grad, batch, head, first, g_batch, g_head, g_step, num_queries, QUERIES, DV, BLOCK_DV, True, False
    )
    queries = first + tl.arange(0, QUERIES)
    products = tl.sum(o.to(tl.float32) * grad.to(tl.float32), 1)
    row = (batch * num_heads + head).to(tl.int64) * num_queries
    tl.store(delta + row + queries, products, mask=queries < num_queries)


@triton.jit
def _key_gradient_range(
    key_grad,
    value_grad,
    k,
    v,
    begin,
    end,
    query,
    output_grad,
    log_sum_exp,
    delta,
    batch,
    head,
    row,
    q_batch,
    q_head,
    q_step,
    g_batch,
    g_head,
    g_step,
    num_queries,
    num_keys,
    keys,
    interval_starts,
    interval_stops,
    query_positions,
    key_positions,
    slope,
    scaling,
    softcap,
    MASKED: tl.constexpr,
    QUERIES: tl.constexpr,
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
    """One loop over tiles of queries; everything two-dimensional is (keys, queries). keys, key_positions: (k, 1)."""
    for first in tl.range(begin, end, QUERIES):
        queries = first + tl.arange(0, QUERIES)
        q = load_tile(
            query, batch, head, first, q_batch, q_head, q_step, num_queries, QUERIES, D, BLOCK_D, MASKED, DESCRIPTORS
        )
        if MASKED:  # a query beyond the last one: exp2(scores - inf) = 0
            real = queries < num_queries
            normalizer = tl.load(log_sum_exp + row + queries, mask=real, other=float("inf"))
            output_product = tl.load(delta + row + queries, mask=real, other=0.0)
        else:
            normalizer = tl.load(log_sum_exp + row + queries)
            output_product = tl.load(delta + row + queries)
        scores = product(k, tl.trans(q), PRECISION, UPCAST)
        positions = queries
        if BIAS != 0:
            positions = tl.load(query_positions + queries, mask=queries < num_queries, other=0)
        scores, squashed = finished_scores(
            scores, scaling, softcap, slope, positions[None, :], key_positions, SOFTCAP, BIAS
        )
        weights = tl.exp2(scores - normalizer[None, :])
        if MASKED and (IS_CAUSAL or INTERVALS):
            row_starts, row_stops = queries * 0, queries * 0 + num_keys
            if INTERVALS:
                row_starts = tl.load(interval_starts + queries, mask=queries < num_queries, other=0)
                row_stops = tl.load(interval_stops + queries, mask=queries < num_queries, other=0)
            sees = visible(
                queries[None, :], keys, row_starts[None, :], row_stops[None, :], num_keys, IS_CAUSAL, INTERVALS
            )
            weights = tl.where(sees, weights, 0.0)
        grad = load_tile(
            output_grad,
            batch,
            head,
            first,
            g_batch,
            g_head,
            g_step,
            num_queries,
            QUERIES,
            DV,
            BLOCK_DV,
            MASKED,
            DESCRIPTORS,
        )
        value_grad = added_product(weights.to(grad.dtype), grad, value_grad, PRECISION, UPCAST)
        weights_grad = product(v, tl.trans(grad), PRECISION, UPCAST)
        scores_grad = weights * (weights_grad - output_product[None, :])
        if SOFTCAP:
            scores_grad *= 1.0 - squashed * squashed
        key_grad = added_product(scores_grad.to(q.dtype), q, key_grad, PRECISION, UPCAST)
    return key_grad, value_grad


@triton.jit(do_not_specialize=["num_kv_heads", "num_tiles"])
def key_gradient_kernel(
    query,
    key,
    value,
    output_grad,
    log_sum_exp,
    delta,
    key_grad_out,
    value_grad_out,
    interval_starts,
    interval_stops,
    first_queries,
    last_queries,
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
    dk_batch,
    dk_head,
    dk_step,
    dv_batch,
    dv_head,
    dv_step,
    intervals_batch,
    tiles_batch,
    query_positions_batch,
    key_positions_batch,
    num_kv_heads,
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
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dK and dV of one tile of keys. Grid: (B * K * num_tiles,).

    first_queries, last_queries: int32 (B or 1, num_tiles), with intervals: the queries outside them see no key of a tile.
    """
    program = tl.program_id(0)
    tile = program % num_tiles
    batch = program // num_tiles // num_kv_heads
    kv_head = program // num_tiles % num_kv_heads
    first_key = tile * KEYS
    keys = first_key + tl.arange(0, KEYS)
    k = load_tile(key, batch, kv_head, first_key, k_batch, k_head, k_step, num_keys, KEYS, D, BLOCK_D, True, False)
    v = load_tile(value, batch, kv_head, first_key, v_batch, v_head, v_step, num_keys, KEYS, DV, BLOCK_DV, True, False)
    key_grad = tl.zeros([KEYS, BLOCK_D], dtype=tl.float32)
    value_grad = tl.zeros([KEYS, BLOCK_DV], dtype=tl.float32)

    key_positions = keys
    query_positions = all_query_positions
    if BIAS != 0:
        key_positions = tl.load(all_key_positions + batch * key_positions_batch + keys, mask=keys < num_keys, other=0)
        query_positions = all_query_positions + batch * query_positions_batch
    starts, stops = interval_starts, interval_stops
    full_end = num_queries // QUERIES * QUERIES  # whole tiles of queries
    if INTERVALS:
        starts = interval_starts + batch * intervals_batch
        stops = interval_stops + batch * intervals_batch
        begin = tl.load(first_queries + batch * tiles_batch + tile) // QUERIES * QUERIES
        whole_begin = tl.load(last_queries + batch * tiles_batch + tile)
        whole_end = whole_begin
        end = whole_begin
    elif IS_CAUSAL:
        begin = first_key // QUERIES * QUERIES
        whole_begin = tl.minimum(tl.cdiv(first_key + KEYS - 1, QUERIES) * QUERIES, tl.maximum(full_end, begin))
        whole_end = tl.maximum(whole_begin, full_end)
        end = num_queries
    else:
        begin = first_key * 0
        whole_begin = begin
        whole_end = begin + full_end
        end = num_queries

    for member in range(G):
        head = kv_head * G + member
        row = (batch * num_kv_heads * G + head).to(tl.int64) * num_queries
        slope = 0.0
        if BIAS != 0:
            slope = tl.load(slopes + head).to(tl.float32)
        for part in tl.static_range(3):
            # part 0 the queries of which some see some keys, 1 those that see all, 2 those of an unfinished tile
            if (part == 0 and (IS_CAUSAL or INTERVALS)) or (part != 0 and not INTERVALS):
                key_grad, value_grad = _key_gradient_range(
                    key_grad,
                    value_grad,
                    k,
                    v,
                    begin if part == 0 else (whole_begin if part == 1 else whole_end),
                    whole_begin if part == 0 else (whole_end if part == 1 else end),
                    query,
                    output_grad,
                    log_sum_exp,
                    delta,
                    batch,
                    head,
                    row,
                    q_batch,
                    q_head,
                    q_step,
                    g_batch,
                    g_head,
                    g_step,
                    num_queries,
                    num_keys,
                    keys[:, None],
                    starts,
                    stops,
                    query_positions,
                    key_positions[:, None],
                    slope,
                    scaling,
                    softcap,
                    part != 1,
                    QUERIES,
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

    store_tile(
        key_grad_out,
        key_grad * scaling,
        batch,
        kv_head,
        first_key,
        dk_batch,
        dk_head,
        dk_step,
        num_keys,
        KEYS,
        D,
        BLOCK_D,
    )
    store_tile(
        value_grad_out, value_grad, batch, kv_head, first_key, dv_batch, dv_head, dv_step, num_keys, KEYS, DV, BLOCK_DV
    )
