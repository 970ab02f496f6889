"""Attention of a few queries to many keys, as in decoding: the keys are split among programs, whose results are joined.

B batch, H query heads, K key/value heads, G = H / K query heads a group, T queries, S keys, D head dim, Dv of the values.

One token a row leaves most of a GPU idle where a program takes a tile of queries; Dao et al. 2023, "Flash-Decoding for
long-context inference". The queries of a group's heads are rows of one tile, so that each key is read once. Each program
normalizes what it has seen, and the joined output is the mean of the parts weighted by their sums. Forward only.
"""

import triton
import triton.language as tl

from hf_ext.ops.triton.attention_tiles import added_product, finished_scores, load_tile, product, visible


MAX_ROWS = 64  # queries times heads of a group that one tile takes


@triton.jit(do_not_specialize=["num_kv_heads", "num_queries", "num_keys", "num_splits"])
def attend_split_kernel(
    query,
    key,
    value,
    partial_output,
    partial_sums,
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
    intervals_batch,
    query_positions_batch,
    key_positions_batch,
    num_kv_heads,
    num_queries,
    num_keys,
    num_splits,
    keys_per_split,
    scaling,
    softcap,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    INTERVALS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One split of one key/value head. Grid: (B * K * num_splits,). Row r is query r % T of the group's head r // T.

    partial_output: fp32 (B, K, num_splits, G * T, Dv). partial_sums: fp32 (B, K, num_splits, G * T), log-sum-exp in units of
    log 2, -inf where a split holds no key that the query sees.
    """
    program = tl.program_id(0)
    split = program % num_splits
    batch = program // num_splits // num_kv_heads
    kv_head = program // num_splits % num_kv_heads
    rows = tl.arange(0, ROWS)
    real = rows < G * num_queries
    heads = kv_head * G + rows // num_queries
    queries = rows % num_queries

    row_starts, row_stops = queries * 0, queries * 0 + num_keys
    if INTERVALS:
        offset = batch * intervals_batch
        row_starts = tl.load(interval_starts + offset + queries, mask=real, other=0)
        row_stops = tl.load(interval_stops + offset + queries, mask=real, other=0)
        # whatever an interval says, nothing beside the keys is read
        row_starts = tl.maximum(row_starts, 0)
        row_stops = tl.minimum(row_stops, num_keys)
    query_positions, slope = queries, queries * 0.0
    key_positions = all_key_positions
    if BIAS != 0:
        query_positions = tl.load(all_query_positions + batch * query_positions_batch + queries, mask=real, other=0)
        key_positions = all_key_positions + batch * key_positions_batch
        slope = tl.load(slopes + heads, mask=real, other=0.0).to(tl.float32)

    dims = tl.arange(0, BLOCK_D)
    # 64 bits: a few queries may be the end of a long row of them
    places = heads.to(tl.int64) * q_head + queries.to(tl.int64) * q_step
    pointers = query + batch.to(tl.int64) * q_batch + places[:, None] + dims[None, :]
    q = tl.load(pointers, mask=real[:, None] & (dims < D)[None, :], other=0.0)
    accumulator = tl.zeros([ROWS, BLOCK_DV], dtype=tl.float32)
    maximum = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)

    begin = split * keys_per_split
    end = tl.minimum(begin + keys_per_split, num_keys)
    if INTERVALS:  # keys that nobody sees, as of a static cache that is not full, are not read
        begin = tl.maximum(begin, tl.min(tl.where(real, row_starts, num_keys)) // KEYS * KEYS)
        end = tl.minimum(end, tl.max(row_stops))
    for first in tl.range(begin, end, KEYS):
        keys = first + tl.arange(0, KEYS)
        k = load_tile(key, batch, kv_head, first, k_batch, k_head, k_step, num_keys, KEYS, D, BLOCK_D, True, False)
        v = load_tile(value, batch, kv_head, first, v_batch, v_head, v_step, num_keys, KEYS, DV, BLOCK_DV, True, False)
        scores = product(q, tl.trans(k), PRECISION, UPCAST)
        positions = keys
        if BIAS != 0:
            positions = tl.load(key_positions + keys, mask=keys < num_keys, other=0)
        scores, _ = finished_scores(
            scores, scaling, softcap, slope[:, None], query_positions[:, None], positions[None, :], SOFTCAP, BIAS
        )
        sees = visible(
            queries[:, None], keys[None, :], row_starts[:, None], row_stops[:, None], num_keys, IS_CAUSAL, INTERVALS
        )
        scores = tl.where(sees, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 1)
        accumulator = added_product(weights.to(v.dtype), v, accumulator * decay[:, None], PRECISION, UPCAST)
        maximum = new_maximum

    seen = total > 0
    safe_total = tl.where(seen, total, 1.0)
    accumulator = accumulator / safe_total[:, None]
    row = program.to(tl.int64) * (G * num_queries) + rows
    value_dims = tl.arange(0, BLOCK_DV)
    tl.store(
        partial_output + row[:, None] * DV + value_dims[None, :],
        accumulator,
        mask=real[:, None] & (value_dims < DV)[None, :],
    )
    tl.store(partial_sums + row, tl.where(seen, maximum + tl.log2(safe_total), float("-inf")), mask=real)


@triton.jit(do_not_specialize=["num_kv_heads", "num_queries", "num_splits"])
def join_splits_kernel(
    partial_output,
    partial_sums,
    output,
    sinks,
    o_batch,
    o_head,
    o_step,
    num_kv_heads,
    num_queries,
    num_splits,
    G: tl.constexpr,
    SPLITS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Output of one query of one head. Grid: (B * K * G * T,). SPLITS: a power of two, at least `num_splits`."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    program = tl.program_id(0)
    rows_per_head = G * num_queries
    row = program % rows_per_head
    batch = program // rows_per_head // num_kv_heads
    kv_head = program // rows_per_head % num_kv_heads
    head = kv_head * G + row // num_queries
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, BLOCK_DV)
    parts = ((batch * num_kv_heads + kv_head) * num_splits + splits).to(tl.int64) * rows_per_head + row
    there = splits < num_splits
    sums = tl.load(partial_sums + parts, mask=there, other=float("-inf"))
    maximum = tl.max(sums)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        maximum = tl.maximum(maximum, sink)
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp2(sums - shift)
    total = tl.sum(weights)
    if SINKS:
        total += tl.exp2(sink - shift)
    outputs = tl.load(
        partial_output + parts[:, None] * DV + dims[None, :],
        mask=there[:, None] & (dims < DV)[None, :],
        other=0.0,
    )
    joined = tl.sum(outputs * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    pointers = output + batch.to(tl.int64) * o_batch + head * o_head + row % num_queries * o_step + dims
    tl.store(pointers, joined.to(output.dtype.element_ty), mask=dims < DV)
