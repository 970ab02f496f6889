"""What the kernels of Triton attention share: tile sizes, tiles in memory, which keys a tile of queries sees, scores.

B batch, H query heads, K key/value heads, T queries, S keys, D head dim.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one kernel: queries and keys (powers of two, at least 16), warps, and tiles that are loaded ahead."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2
    descriptors: bool = False  # whether the copy engine loads them, where the layout allows it
    registers: int | None = None  # of a thread, at most: with fewer, more programs share a multiprocessor


# Largest head dim -> tiles, for two-byte inputs on Hopper; `python tests/benchmarks/gpu.py --parts tiles` times others.
FORWARD_TILES = {64: Tiles(128, 128, 8, 2), 128: Tiles(128, 128, 8, 2), 256: Tiles(128, 64, 8, 2)}
KEY_GRADIENT_TILES = {64: Tiles(64, 128, 8, 2), 128: Tiles(64, 128, 8, 2), 256: Tiles(32, 64, 8, 2)}
QUERY_GRADIENT_TILES = {64: Tiles(128, 64, 8, 2), 128: Tiles(128, 64, 8, 2), 256: Tiles(64, 64, 8, 2)}
# chips whose shared memory is smaller; then numbers of four bytes, whose products of parts fill registers
SMALL_TILES = {64: Tiles(64, 64, 4, 2), 128: Tiles(64, 32, 4, 2), 256: Tiles(32, 32, 8, 1)}
FP32_TILES = {64: Tiles(64, 32, 4, 2), 128: Tiles(32, 32, 4, 2), 256: Tiles(16, 16, 4, 1)}


def is_interpreted() -> bool:
    """Whether kernels run as Python on the CPU (TRITON_INTERPRET=1, read when Triton is imported)."""
    return triton.knobs.runtime.interpret


def tiles_for(table: dict[int, Tiles], x: torch.Tensor, head_dim: int) -> Tiles:
    """The row of `table` for inputs like `x`."""
    # 227 KiB of shared memory a multiprocessor: Hopper and the Blackwell of data centres; other chips have 100 or so
    hopper = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
    if x.element_size() > 2:
        table = FP32_TILES
    elif not (hopper or is_interpreted()):
        table = SMALL_TILES
    return next(tiles for largest, tiles in table.items() if head_dim <= largest)


@triton.jit
def load_tile(
    source,
    batch,
    head,
    first,
    per_batch,
    per_head,
    step,
    num_rows,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """(ROWS, BLOCK_D): the rows from `first` on of one head; zeros beyond `num_rows`, if CHECKED, and beyond D.

    Of a pointer, `per_batch`, `per_head` and `step` are strides in elements. Of a descriptor, which reads a matrix, they are
    rows to a batch row, rows to a head and columns to a head.
    """
    if DESCRIPTORS:
        tile = source.load([batch * per_batch + head * per_head + first, head * step])
    else:
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        # 64 bits for what may be far away, 32 within a tile
        base = source + batch.to(tl.int64) * per_batch + head.to(tl.int64) * per_head + tl.cast(first, tl.int64) * step
        pointers = base + (rows[:, None] * step + dims[None, :])
        if CHECKED:
            inside = (first + rows < num_rows)[:, None] & (dims < D)[None, :]
            tile = tl.load(pointers, mask=inside, other=0.0)
        elif D != BLOCK_D:
            tile = tl.load(pointers, mask=(dims < D)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    target,
    tile,
    batch,
    head,
    first,
    per_batch,
    per_head,
    step,
    num_rows,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The inverse of `load_tile`, of a pointer; nothing is written beyond `num_rows` and D."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    base = target + batch.to(tl.int64) * per_batch + head.to(tl.int64) * per_head + tl.cast(first, tl.int64) * step
    inside = (first + rows < num_rows)[:, None] & (dims < D)[None, :]
    tl.store(base + (rows[:, None] * step + dims[None, :]), tile.to(target.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a @ b in fp32. UPCAST: for the interpreter, whose products of bf16 are garbage."""
    if UPCAST:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        result = tl.dot(a, b, input_precision=PRECISION)
    return result


@triton.jit
def added_product(a, b, accumulator, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """accumulator + a @ b in fp32."""
    if UPCAST:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision=PRECISION)
    else:
        result = tl.dot(a, b, accumulator, input_precision=PRECISION)
    return result


@triton.jit
def visible_range(
    first_query,
    row_starts,
    row_stops,
    num_queries,
    num_keys,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    INTERVALS: tl.constexpr,
):
    """What a tile of queries sees, cut at tiles of KEYS: begin, begin and end of the part that all of them see, end.

    Multiples of KEYS, but for the end; the tiles before `whole_begin` and from `whole_end` on need a mask.

    Args:
        row_starts, row_stops: (QUERIES,) of the intervals; beyond the last query 0 and `num_keys`.
    """
    if INTERVALS:
        real = first_query + tl.arange(0, QUERIES) < num_queries
        sees = real & (row_starts < row_stops)
        begin = tl.min(tl.where(sees, row_starts, num_keys)) // KEYS * KEYS
        end = tl.max(tl.where(sees, row_stops, 0))
        begin = tl.minimum(begin, end)
        whole_begin = tl.cdiv(tl.max(row_starts), KEYS) * KEYS
        whole_end = tl.min(row_stops) // KEYS * KEYS
        # nothing that all see: the first part is everything
        whole_begin = tl.where(whole_begin < whole_end, whole_begin, tl.cdiv(end, KEYS) * KEYS)
        whole_begin = tl.maximum(whole_begin, begin)
        whole_end = tl.maximum(whole_begin, whole_end)
    elif IS_CAUSAL:
        begin = first_query * 0
        whole_begin = begin
        whole_end = tl.minimum(first_query + 1, num_keys) // KEYS * KEYS
        end = tl.minimum(tl.minimum(first_query + QUERIES, num_queries), num_keys)
    else:
        begin = first_query * 0
        whole_begin = begin
        whole_end = begin + num_keys // KEYS * KEYS
        end = begin + num_keys
    return begin, whole_begin, whole_end, end


@triton.jit
def visible(queries, keys, starts, stops, num_keys, IS_CAUSAL: tl.constexpr, INTERVALS: tl.constexpr):
    """Which query sees which key. All but `num_keys` are of two dims, queries along one and keys along the other."""
    if INTERVALS:
        mask = (keys >= starts) & (keys < stops)
    elif IS_CAUSAL:
        mask = (keys <= queries) & (keys < num_keys)
    else:
        mask = (keys < num_keys) & (queries >= 0)
    return mask


@triton.jit
def finished_scores(
    raw, scaling, softcap, slope, query_positions, key_positions, SOFTCAP: tl.constexpr, BIAS: tl.constexpr
):
    """Scores in units of log 2, so that exp2 is their exponential, and tanh(raw scores / softcap).

    BIAS: 0 none, 1 ALiBi of the past, 2 ALiBi of both directions.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    if SOFTCAP:
        squashed = 2.0 * tl.sigmoid(raw * (2.0 * scaling / softcap)) - 1.0
        scores = squashed * (softcap * LOG2_E)
    else:
        squashed = raw
        scores = raw * (scaling * LOG2_E)
    if BIAS != 0:
        scores += (slope * LOG2_E) * alibi_distance(query_positions, key_positions, BIAS)
    return scores, squashed


@triton.jit
def alibi_distance(query_positions, key_positions, BIAS: tl.constexpr):
    """fp32; what the slope is multiplied by, see `ops/score_bias.py`."""
    distance = (key_positions - query_positions).to(tl.float32)
    if BIAS == 2:
        distance = -tl.abs(distance)
    return distance
