"""The last layer and its loss, with the logits whole and in chunks: time and peak memory of forward and backward.

    python tests/benchmarks/cross_entropy.py [--tokens 2048] [--vocab_size 32000] [--hidden_size 512]

Each case runs in a process of its own, so that its peak memory is its own; times are medians of 5.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from hf_ext.ops.cross_entropy import linear_cross_entropy


def whole(hidden_states, weight, labels):
    return F.cross_entropy(F.linear(hidden_states, weight), labels)


CASES = {"F.linear, F.cross_entropy": whole, "linear_cross_entropy": linear_cross_entropy}


def measure(name: str, tokens: int, vocab_size: int, hidden_size: int, ignored: float) -> dict[str, float]:
    """Median seconds, and peak resident memory above the inputs and their gradients, in MB."""
    torch.manual_seed(0)
    hidden_states = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = (torch.randn(vocab_size, hidden_size) * 0.02).requires_grad_()
    labels = torch.randint(vocab_size, (tokens,)).masked_fill(torch.rand(tokens) < ignored, -100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(6):
        hidden_states.grad = weight.grad = None
        start = time.perf_counter()
        CASES[name](hidden_states, weight, labels).backward()
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(seconds[1:]), "megabytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    sizes = [arguments.tokens, arguments.vocab_size, arguments.hidden_size]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{sizes[0]} tokens, vocabulary {sizes[1]}, hidden size {sizes[2]}, fp32, forward and backward, median of 5\n"
    )
    print("| | all labels: s, MB | half of them ignored: s, MB |\n| --- | --- | --- |")
    for name in CASES:
        cells = []
        for ignored in (0.0, 0.5):
            command = [sys.executable, __file__, "--case", json.dumps([name, *sizes, ignored])]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            cells.append(f"{found['seconds']:.2f}, {found['megabytes']:.0f}")
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
