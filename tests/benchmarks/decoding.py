"""Decoding against transformers' Llama of the same shape and weights: tokens a second of `generate`, greedy.

    python tests/benchmarks/decoding.py [--batch_sizes 1,8,64] [--new_tokens 64] [--prompt_tokens 32] [--rounds 7]
        [--sides llama,plain,fused,compiled] [--layers 12]

Sides: transformers' Llama; ours; ours with `fuse_projections()`; ours with that and a compiled step over a static cache.
A step needs every weight once, and the keys and values of what came before of each row: no decoder of this shape can make
its tokens faster than memory gives these bytes, which is the last row of a table. For one row that is the bound; for many,
the arithmetic is. Sides in turn in one process; shown are medians, ratios are medians of those of each round.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers
from llama_twin import build, matmul_rate, read_bandwidth
from transformers import CompileConfig


SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
FLOAT = 4  # bytes
SIDES = ("llama", "plain", "fused", "compiled")


def generate(model, prompt: torch.Tensor, new_tokens: int, **options) -> tuple[float, torch.Tensor]:
    """Seconds, and the tokens with the prompt."""
    start = time.perf_counter()
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        **options,
    )
    return time.perf_counter() - start, ids


def build_sides(names: list[str], sizes: dict) -> dict[str, tuple]:
    """Side -> its model and what `generate` is called with."""
    sides = {}
    for name in names:
        model = build("llama" if name == "llama" else "hf_ext", sizes).eval()
        options = {}
        if name in ("fused", "compiled"):
            model.fuse_projections()
        if name == "compiled":
            config = CompileConfig(mode="default", fullgraph=True, dynamic=False)
            options = {"cache_implementation": "static", "compile_config": config}
        sides[name] = (model, options)
    return sides


def bytes_a_step(model, sizes: dict, batch_size: int, num_tokens: int) -> int:
    """What has to be read to make one token of each row after `num_tokens`: weights once, keys and values of the rows."""
    cache = 2 * sizes["num_hidden_layers"] * num_tokens * sizes["hidden_size"]
    return FLOAT * (sum(parameter.numel() for parameter in model.parameters()) + batch_size * cache)


def measure(sides: dict, prompt: torch.Tensor, new_tokens: int, rounds: int) -> tuple[dict, list[float]]:
    """Seconds a step of each side by round, and the bytes a second that memory gave meanwhile.

    Raises:
        SystemExit: a side generates other tokens; its times would mean nothing.
    """
    texts = {}
    for name, (model, options) in sides.items():
        start = time.perf_counter()
        texts[name] = generate(model, prompt, new_tokens, **options)[1]
        if options:
            print(f"{name}: {time.perf_counter() - start:.0f} s until the steps were compiled\n")
    first = next(iter(texts.values()))
    others = [name for name, text in texts.items() if not torch.equal(text, first)]
    if others:
        raise SystemExit(f"{', '.join(others)}: not the tokens of the others; times would mean nothing")
    seconds, rates = {name: [] for name in sides}, []
    for _ in range(rounds):
        rates.append(read_bandwidth())
        for name, (model, options) in sides.items():
            prepared = generate(model, prompt, 1, **options)[0]  # the prompt, and what generate prepares
            whole = generate(model, prompt, new_tokens, **options)[0]
            seconds[name].append((whole - prepared) / (new_tokens - 1))
    return seconds, rates


def show(seconds: dict, rates: list[float], needed: int, batch_size: int) -> None:
    """The table of one batch size. `needed`: bytes a step."""
    first = next(iter(seconds))
    rate = statistics.median(rates)
    bound = needed / rate
    print(f"| batch {batch_size} | tokens/s | ms a step | against {first} | GB/s | of the bound |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        ratio = statistics.median(a / b for a, b in zip(seconds[first], runs, strict=True))
        print(f"| {name} | {batch_size / middle:.1f} | {middle * 1e3:.1f} | {ratio:.2f} | ", end="")
        print(f"{needed / middle / 1e9:.1f} | {bound / middle:.2f} |")
    ratio = statistics.median(seconds[first]) / bound
    print(
        f"| memory: {needed / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s | {batch_size / bound:.1f} | {bound * 1e3:.1f} | ",
        end="",
    )
    print(f"{ratio:.2f} | {rate / 1e9:.1f} | 1.00 |\n")


def processor() -> str:
    """What the machine calls its processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", default="1,8,64", help="rows that are decoded at once, by commas")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}; the first is compared with")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"])
    arguments = parser.parse_args()
    names = arguments.sides.split(",")
    if unknown := sorted(set(names) - set(SIDES)):
        parser.error(f"--sides: {', '.join(unknown)} is none of {', '.join(SIDES)}")
    if arguments.new_tokens < 2:
        parser.error(f"--new_tokens={arguments.new_tokens}: must be at least 2, the first token is not measured")
    transformers.logging.set_verbosity_error()

    sizes = {**SIZES, "num_hidden_layers": arguments.layers}
    sides = build_sides(names, sizes)
    model = next(iter(sides.values()))[0]
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, fp32, greedy, ", end="")
    print(f"{arguments.prompt_tokens} + {arguments.new_tokens} tokens, the same on all sides; ", end="")
    print(f"median of {arguments.rounds}, sides in turn; {matmul_rate() / 1e9:.0f} GFLOP/s in matrix products\n")
    for batch_size in map(int, arguments.batch_sizes.split(",")):
        prompt = torch.randint(
            3,
            SIZES["vocab_size"],
            (batch_size, arguments.prompt_tokens),
            generator=torch.Generator().manual_seed(1),
        )
        seconds, rates = measure(sides, prompt, arguments.new_tokens, arguments.rounds)
        needed = bytes_a_step(model, sizes, batch_size, arguments.prompt_tokens + arguments.new_tokens // 2)
        show(seconds, rates, needed, batch_size)


if __name__ == "__main__":
    main()
