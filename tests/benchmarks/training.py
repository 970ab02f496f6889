"""Training against transformers' Llama of the same shape and weights: tokens a second and peak memory.

    python tests/benchmarks/training.py [--steps 6] [--rounds 3] [--tokens 2048]

First rows of 512 tokens; then documents of natural lengths (the functions and classes of Python's library), ours packed
into rows, Llama's in padded batches of as many tokens a step. Both sides run in `HfxTrainer` with fused AdamW, fp32.

Each case runs in a process of its own, sides in turn; shown are medians over rounds of medians over steps. Peak memory is
the process's peak resident memory above what it had before the model was made: weights, gradients, optimizer states and
all that a step needs.
"""

import argparse
import ast
import json
import platform
import statistics
from functools import cache

import torch
import transformers
from llama_twin import SIDES, build, matmul_rate
from training_run import WARM_UP, in_own_process, time_training

from hf_ext.data import iter_python_library, pack_documents, train_tokenizer
from hf_ext.objectives.causal import CausalCollator


ROW = 512  # tokens
SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": ROW,
}
EOS, PAD = 0, 1


@cache
def documents(num_tokens: int) -> list[list[int]]:
    """Top-level functions and classes of Python's library as token ids, cut at a row, at least `num_tokens` in all."""
    modules = [document["text"] for document in iter_python_library(max_bytes=3_000_000)]
    tokenizer = train_tokenizer(modules, vocab_size=8192, model_max_length=ROW)
    found, total = [], 0
    for text in modules:
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a chapter of the language reference
            continue
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            found.append(
                tokenizer(ast.get_source_segment(text, node), truncation=True, max_length=ROW - 1)["input_ids"]
            )
            total += len(found[-1])
        if total >= num_tokens:
            return found
    raise ValueError(f"num_tokens={num_tokens}: the library has {total}; take fewer steps")


def dataset(kind: str, tokens_a_step: int, steps: int) -> tuple[list[dict], int]:
    """Rows for so many steps, and how many make a step."""
    if kind == "rows":
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(SIZES["vocab_size"], (steps * tokens_a_step // ROW, ROW), generator=generator)
        return [{"input_ids": row, "labels": row} for row in ids], tokens_a_step // ROW
    texts = documents(2 * steps * tokens_a_step)
    if kind == "packed":
        rows = pack_documents(texts, row_length=ROW, strategy="best_fit", eos_token_id=EOS, pad_token_id=PAD)
        return list(rows), tokens_a_step // ROW
    rows = [[*text, EOS] for text in texts]  # padded: as many documents as have that many tokens on average
    return [{"input_ids": row, "labels": row} for row in rows], round(tokens_a_step * len(rows) / sum(map(len, rows)))


def pad_batch(rows: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": PAD, "labels": -100, "attention_mask": 0}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        name: torch.tensor([[*row[name]] + [f] * (length - len(row[name])) for row in rows]) for name, f in fill.items()
    }


def measure(side: str, kind: str, tokens_a_step: int, steps: int) -> dict[str, float]:
    """One training run; tokens of padding don't count."""
    rows, batch_size = dataset(kind, tokens_a_step, steps + WARM_UP)
    collate = {
        "rows": lambda rows: {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")},
        "packed": CausalCollator(SIZES["vocab_size"], PAD),
        "padded": pad_batch,
    }[kind]
    return time_training(
        lambda: build(side, SIZES),
        rows,
        collate,
        lambda batch: int((batch["labels"] != -100).sum()),
        batch_size=batch_size,
        steps=steps,
    )


def operations_a_token(num_parameters: int) -> int:
    """Multiplications and additions of forward and backward: 6 a weight that multiplies, and causal attention's."""
    matrices = num_parameters - SIZES["vocab_size"] * SIZES["hidden_size"]  # the embedding is looked up
    return 6 * matrices + 6 * SIZES["num_hidden_layers"] * ROW * SIZES["hidden_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return

    num_parameters = sum(parameter.numel() for parameter in build("hf_ext", SIZES).parameters())
    operations = operations_a_token(num_parameters)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}")
    print(f"{num_parameters / 1e6:.1f}M parameters, {arguments.tokens} tokens a step, fp32; ", end="")
    print(f"median of {arguments.rounds} x {arguments.steps} steps, sides in turn")
    cases = {(side, "rows"): f"{side}, rows of {ROW}" for side in SIDES}
    cases |= {("llama", "padded"): "llama, documents padded", ("hf_ext", "packed"): "hf_ext, documents packed"}
    found, rates = {case: [] for case in cases}, []
    for _ in range(arguments.rounds):
        rates.append(matmul_rate())
        for case in cases:
            found[case].append(in_own_process(__file__, *case, arguments.tokens, arguments.steps))
    rate = statistics.median(rates)
    print(f"matrix products alone: {rate / 1e9:.0f} GFLOP/s\n")
    print("| | tokens/s | against llama | GFLOP/s | of the machine's | peak MB | loss |\n" + "| --- " * 7 + "|")
    for case, name in cases.items():
        middle = {key: statistics.median(run[key] for run in found[case]) for key in found[case][0]}
        other = next(c for c in cases if c[0] == "llama" and (c[1] == "rows") == (case[1] == "rows"))
        ratio = middle["count_a_second"] / statistics.median(run["count_a_second"] for run in found[other])
        flops = middle["count_a_second"] * operations
        arithmetic = f"{flops / 1e9:.0f} | {flops / rate:.0%}" if case[1] == "rows" else "|"
        print(
            f"| {name} | {middle['count_a_second']:.0f} | {ratio:.2f} | {arithmetic} "
            f"| {middle['megabytes']:.0f} | {middle['loss']:.5f} |"
        )


if __name__ == "__main__":
    main()
