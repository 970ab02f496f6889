"""Attention against attention: time and peak memory of forward and backward over the sequence length.

    python tests/benchmarks/attention.py [--lengths 512 1024 2048 4096 8192] [--tiles]

Each case runs in a process of its own, so that its peak memory is its own; times are medians. Writes
outputs/benchmarks/attention.png beside the table. `--tiles` compares tile sizes of the tiled one instead.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_ext.ops.eager_attention import eager_attention
from hf_ext.ops.flash_attention import KEY_TILE, QUERY_TILE, flash_attention


HEADS, HEAD_DIM = 8, 64
TILES = ((64, 256), (128, 256), (128, 512), (256, 256), (256, 512), (256, 1024), (512, 512))


def measure(name: str, length: int, tiles: list[int], repeats: int) -> dict[str, float]:
    """Median seconds of forward and backward, and the peak resident memory above the inputs, in MB."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3)]
    options = {"query_tile": tiles[0], "key_tile": tiles[1]} if tiles else {}
    attend = {
        "eager": lambda: eager_attention(*inputs, is_causal=True)[0],
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True),
        "hfx_tiled": lambda: flash_attention(*inputs, is_causal=True, **options),
    }[name]
    for tensor in inputs:
        tensor.grad = torch.zeros_like(tensor)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        attend().sum().backward()
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(seconds[1:]), "megabytes": peak}


def in_own_process(name: str, length: int, tiles: tuple[int, int] | None = None, repeats: int = 3) -> dict[str, float]:
    case = json.dumps([name, length, list(tiles or ()), repeats])
    command = [sys.executable, __file__, "--case", case]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def draw(results: dict, lengths: list[int], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("seconds", "megabytes"),
        ("forward and backward, s", "peak memory above the inputs, MB"),
        strict=True,
    ):
        for name, color in (("eager", "#c8553d"), ("sdpa", "#5b8c5a"), ("hfx_tiled", "#3b6ea5")):
            axes.plot(lengths, [results[name, n][key] for n in lengths], marker="o", color=color, label=name)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label, xticks=lengths, xticklabels=lengths)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"causal, batch 1, {HEADS} heads of {HEAD_DIM}, fp32, forward and backward, median of 3\n")
    if arguments.tiles:
        print("| tiles | " + " | ".join(f"T = {n}, ms" for n in arguments.lengths) + " |")
        print("| --- " * (len(arguments.lengths) + 1) + "|")
        for tiles in TILES:
            times = [in_own_process("hfx_tiled", n, tiles)["seconds"] * 1e3 for n in arguments.lengths]
            chosen = " (default)" if tiles == (QUERY_TILE, KEY_TILE) else ""
            print(f"| {tiles[0]} x {tiles[1]}{chosen} | " + " | ".join(f"{t:.0f}" for t in times) + " |", flush=True)
        return
    print("| tokens | eager ms, MB | sdpa ms, MB | hfx_tiled ms, MB |\n| --- | --- | --- | --- |")
    results = {}
    for length in arguments.lengths:
        cells = []
        for name in ("eager", "sdpa", "hfx_tiled"):
            found = results[name, length] = in_own_process(name, length)
            cells.append(f"{found['seconds'] * 1e3:.0f}, {found['megabytes']:.0f}")
        print(f"| {length} | " + " | ".join(cells) + " |", flush=True)
    draw(results, arguments.lengths, Path("outputs/benchmarks/attention.png"))


if __name__ == "__main__":
    main()
