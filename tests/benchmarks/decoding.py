"""Decoding against transformers' Llama of the same shape and weights: tokens a second of `generate`, batch 1, greedy.

    python tests/benchmarks/decoding.py [--new_tokens 64] [--prompt_tokens 32] [--rounds 7]

Each new token needs every weight once, and the keys and values of what came before: no decoder of this shape can be
faster than memory gives these bytes, which is the last row. Sides in turn in one process; shown are medians.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers
from llama_twin import SIDES, build, read_bandwidth


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


def generate(model, prompt: torch.Tensor, new_tokens: int) -> tuple[float, torch.Tensor]:
    """Seconds, and the tokens with the prompt."""
    start = time.perf_counter()
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return time.perf_counter() - start, ids


def bytes_a_token(model, num_tokens: int) -> int:
    """What has to be read to make one token after `num_tokens`: matrices, norms, keys and values."""
    cache = 2 * SIZES["num_hidden_layers"] * num_tokens * SIZES["hidden_size"]
    return FLOAT * (sum(parameter.numel() for parameter in model.parameters()) + cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()

    models = {side: build(side, SIZES).eval() for side in SIDES}
    prompt = torch.randint(
        3, SIZES["vocab_size"], (1, arguments.prompt_tokens), generator=torch.Generator().manual_seed(1)
    )
    texts = {side: generate(model, prompt, arguments.new_tokens)[1] for side, model in models.items()}
    if not torch.equal(*texts.values()):
        raise SystemExit("the two do not generate the same tokens: their times mean nothing")
    seconds, rates = {side: [] for side in SIDES}, []
    for _ in range(arguments.rounds):
        rates.append(read_bandwidth())
        for side, model in models.items():
            first = generate(model, prompt, 1)[0]  # the prompt, and what generate prepares
            whole = generate(model, prompt, arguments.new_tokens)[0]
            seconds[side].append((whole - first) / (arguments.new_tokens - 1))

    middle = {side: statistics.median(runs) for side, runs in seconds.items()}
    rate = statistics.median(rates)
    needed = bytes_a_token(models["hf_ext"], arguments.prompt_tokens + arguments.new_tokens // 2)
    num_parameters = sum(parameter.numel() for parameter in models["hf_ext"].parameters())
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}")
    print(f"{num_parameters / 1e6:.0f}M parameters, fp32, batch 1, greedy, {arguments.prompt_tokens} + ", end="")
    print(f"{arguments.new_tokens} tokens, the same on both sides; median of {arguments.rounds}, sides in turn\n")
    print("| | tokens/s | ms a token | against llama | GB/s |\n| --- | --- | --- | --- | --- |")
    for side in SIDES:
        ratio = statistics.median(a / b for a, b in zip(seconds["llama"], seconds[side], strict=True))
        print(f"| {side} | {1 / middle[side]:.1f} | {middle[side] * 1e3:.1f} | {ratio:.2f} | ", end="")
        print(f"{needed / middle[side] / 1e9:.1f} |")
    bound = needed / rate
    print(f"| {needed / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s | {1 / bound:.1f} | {bound * 1e3:.1f} | ", end="")
    print(f"{middle['llama'] / bound:.2f} | {rate / 1e9:.1f} |")


if __name__ == "__main__":
    main()
