"""Tile sizes of Triton attention against one another, each of its three kernels by itself.

Candidates are compiled by many processes at once, into Triton's cache on disk, and then timed one after the other.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple

import torch
from gpu_timing import attention_operations, median_milliseconds

from hf_ext.ops.triton.attention_tiles import Tiles


KERNELS = ("forward", "key_gradient", "query_gradient")
HEADS = 16
# products of T x T x D in each kernel
PRODUCTS = {"forward": 2, "key_gradient": 4, "query_gradient": 3}


def candidates(kernel: str, head_dim: int) -> list[Tiles]:
    """What is worth trying on Hopper: queries, keys, warps, stages; None: as many registers as the compiler takes."""
    sizes = {
        ("forward", 128): [
            (128, 128, 8, 2),
            (128, 128, 8, 3),
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 64, 8, 2, 128),
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 128, 4, 2),
        ],
        ("forward", 64): [
            (128, 128, 8, 2),
            (128, 128, 8, 3),
            (128, 128, 4, 2),
            (128, 64, 4, 3),
            (64, 128, 4, 2),
            (128, 64, 8, 3, 128),
        ],
        ("key_gradient", 128): [
            (64, 128, 8, 2),
            (64, 128, 8, 3),
            (32, 128, 8, 3),
            (128, 64, 8, 2),
            (64, 64, 4, 2),
            (64, 64, 8, 2, 128),
        ],
        ("key_gradient", 64): [
            (64, 128, 8, 2),
            (64, 128, 8, 3),
            (128, 128, 8, 2),
            (64, 128, 4, 2),
            (64, 64, 4, 3),
            (64, 128, 8, 2, 128),
        ],
        ("query_gradient", 128): [
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 128, 8, 2),
            (128, 32, 8, 3),
            (64, 64, 4, 2),
            (64, 128, 4, 2),
        ],
        ("query_gradient", 64): [
            (128, 64, 8, 2),
            (128, 64, 8, 3),
            (128, 128, 8, 2),
            (128, 64, 4, 2),
            (64, 128, 4, 2),
            (64, 64, 4, 3),
        ],
    }[kernel, head_dim]
    return [
        Tiles(*size[:4], descriptors=copied, registers=size[4] if len(size) > 4 else None)
        for size in sizes
        for copied in (False, True)
    ]


def prepare(kernel: str, head_dim: int, length: int, batch_size: int):
    """A function of tile sizes that runs one kernel, on random inputs laid out as a model's are."""
    from hf_ext.ops.triton import triton_attention as module

    torch.manual_seed(0)
    tensors = [
        torch.randn(batch_size, length, HEADS, head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for _ in range(4)
    ]
    *inputs, output_grad = tensors
    if kernel == "forward":
        return lambda tiles: module.triton_attention(
            *inputs, is_causal=True, tiles=module.AttentionTiles(forward=tiles)
        )
    log_sum_exp = torch.full((batch_size, HEADS, length), 12.0, device="cuda")
    delta = torch.zeros_like(log_sum_exp)
    kept = (log_sum_exp, delta, None, None, None, None, None)

    def run(tiles: Tiles):
        options = module.AttentionOptions(True, head_dim**-0.5, tiles=module.AttentionTiles(**{kernel: tiles}))
        function = module.key_gradients if kernel == "key_gradient" else module.query_gradient
        return function(*inputs, output_grad, *kept, options)

    return run


def compile_one(kernel: str, head_dim: int, length: int, tiles: Tiles) -> str:
    """Compiles in this process; why it can't be run, in a few words, or ""."""
    import triton

    try:
        prepare(kernel, head_dim, length, 1)(tiles)
        torch.cuda.synchronize()
    except (triton.runtime.errors.OutOfResources, triton.errors.TritonError, RuntimeError) as error:
        return str(error).splitlines()[0][:80]
    return ""


def sweep(head_dims: list[int], length: int, batch_size: int, workers: int) -> list[dict]:
    """TFLOP/s of every candidate, counting the products that its kernel really makes; best first."""
    tasks = [(kernel, D, tiles) for D in head_dims for kernel in KERNELS for tiles in candidates(kernel, D)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, os.cpu_count() or 1), mp_context=context) as pool:
        futures = [pool.submit(compile_one, kernel, D, length, tiles) for kernel, D, tiles in tasks]
        failures = [future.result() for future in futures]
    rows = []
    for (kernel, D, tiles), failure in zip(tasks, failures, strict=True):
        row = {"kernel": kernel, "head_dim": D, "tiles": astuple(tiles), "failure": failure, "rate": 0.0}
        if not failure:
            run = prepare(kernel, D, length, batch_size)
            forward, _ = attention_operations(batch_size, HEADS, length, D, is_causal=True)
            milliseconds = median_milliseconds(lambda run=run, tiles=tiles: run(tiles), budget=0.1)
            row |= {"milliseconds": milliseconds}
            row["rate"] = forward / 2 * PRODUCTS[kernel] / milliseconds / 1e9
        rows.append(row)
    return sorted(rows, key=lambda row: (row["kernel"], row["head_dim"], -row["rate"]))


def print_sweep(rows: list[dict]) -> None:
    print("| kernel | head dim | queries, keys, warps, stages, copied, registers | TFLOP/s | ms |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        result = f"{row['rate']:.0f} | {row['milliseconds']:.3f}" if not row["failure"] else f"{row['failure']} |"
        print(f"| {row['kernel']} | {row['head_dim']} | {row['tiles']} | {result} |")
