"""Time and memory on a CUDA device, and what the device itself can do: the ceilings that everything else is held against."""

import statistics
from collections.abc import Callable

import torch


CACHE_BYTES = 256 * 2**20  # written between two runs, several times the second-level cache


def median_milliseconds(function: Callable, *, budget: float = 0.25, most: int = 30) -> float:
    """Median time of a call by CUDA events, after one call that warms up.

    Args:
        budget: seconds that all measured calls may take; at least 5 are made. most: calls.
    """
    flush = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device="cuda")
    function()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize()
    repeats = max(5, min(most, int(budget * 1e3 / max(1e-3, start.elapsed_time(stop)))))
    pairs = []
    for _ in range(repeats):
        flush.zero_()
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        function()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in pairs)


def peak_megabytes(function: Callable) -> float:
    """Most memory that a call holds at a time, above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def matmul_rate(size: int = 8192, dtype: torch.dtype = torch.bfloat16) -> float:
    """Operations a second of torch's square product of random matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_milliseconds(lambda: a @ b) * 1e3


def copy_bandwidth(num_bytes: int = 4 * 2**30) -> float:
    """Bytes a second of a copy, those read and those written."""
    source = torch.empty(num_bytes // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * num_bytes / median_milliseconds(lambda: target.copy_(source)) * 1e3


def attention_operations(B: int, H: int, T: int, D: int, *, is_causal: bool) -> tuple[float, float]:
    """Floating-point operations of forward and of backward as they are usually counted: two and five products of T x T x D,
    half of them where a mask is causal."""
    product = 2.0 * B * H * T * T * D / (2 if is_causal else 1)
    return 2 * product, 5 * product
