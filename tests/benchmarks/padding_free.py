"""Padding-free against padded: fine-tuning on sentences of natural lengths, samples a second and peak memory.

    python tests/benchmarks/padding_free.py [--steps 20] [--rounds 3] [--batch 32]

transformers' BERT for sequence classification against ours of the same shape, on the sentences of SST-2 in
their order in the file, padded to the longest of a batch; ours with `padding_free` off and on. Both sides in `HfxTrainer`
with fused AdamW, fp32. Each case runs in a process of its own, sides in turn; medians over rounds.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

import torch
import transformers
from training_run import WARM_UP, in_own_process, time_training
from transformers import BertConfig, BertForSequenceClassification

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxEncoderConfig, HfxEncoderForSequenceClassification


DATA = Path(os.environ.get("HF_EXT_DATA", "../shared/data")) / "sst2" / "train.tsv"
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 1,
}
BERT = {
    "block_type": "post_norm",
    "norm_bias": True,
    "norm_eps": 1e-12,
    "mlp_type": "plain",
    "mlp_bias": True,
    "attention_bias": True,
    "position_embedding_type": "learned",
    "type_vocab_size": 2,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,  # torch's attention on the CPU has no fast path with it, on either side
}
CASES = {
    "bert": "transformers' BERT, padded",
    "padded": "hf_ext, padded",
    "padding_free": "hf_ext, padding-free",
}


def sentences() -> list[dict]:
    lines = [line.split("\t") for line in DATA.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer((text for text, _ in lines), vocab_size=8192, model_max_length=512)
    return [{"input_ids": tokenizer(text)["input_ids"], "labels": int(label)} for text, label in lines]


def pad_batch(rows: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    ids = [row["input_ids"] + [SIZES["pad_token_id"]] * (length - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def build(side: str):
    torch.manual_seed(0)
    if side == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES, attention_probs_dropout_prob=0.0))
    return HfxEncoderForSequenceClassification(HfxEncoderConfig(**SIZES, **BERT, padding_free=side == "padding_free"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="sentences a step")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if not DATA.is_file():
        raise SystemExit(f"{DATA}: not there; set HF_EXT_DATA to the folder that holds sst2/train.tsv")
    rows = sentences()[: (arguments.steps + WARM_UP) * arguments.batch]
    if arguments.case:
        (side,) = json.loads(arguments.case)
        options = {"batch_size": arguments.batch, "steps": arguments.steps}
        print(json.dumps(time_training(lambda: build(side), rows, pad_batch, lambda b: len(b["labels"]), **options)))
        return

    batches = [rows[i : i + arguments.batch] for i in range(0, len(rows), arguments.batch)]
    real = sum(len(row["input_ids"]) for row in rows)
    padded = sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in batches)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}")
    print(
        f"{build('padded').num_parameters() / 1e6:.1f}M parameters, {arguments.batch} sentences a step, fp32; ", end=""
    )
    print(f"{real / len(rows):.1f} tokens a sentence, {1 - real / padded:.0%} of a padded batch is padding; ", end="")
    print(f"median of {arguments.rounds} x {arguments.steps} steps, sides in turn\n")
    found = {side: [] for side in CASES}
    extra = ("--steps", str(arguments.steps), "--batch", str(arguments.batch))
    for _ in range(arguments.rounds):
        for side in CASES:
            found[side].append(in_own_process(__file__, side, options=extra))
    print("| | samples/s | against BERT | peak MB | loss |\n" + "| --- " * 5 + "|")
    for side, name in CASES.items():
        middle = {key: statistics.median(run[key] for run in found[side]) for key in found[side][0]}
        ratio = middle["count_a_second"] / statistics.median(run["count_a_second"] for run in found["bert"])
        print(
            f"| {name} | {middle['count_a_second']:.0f} | {ratio:.2f} | {middle['megabytes']:.0f} | {middle['loss']:.3f} |"
        )


if __name__ == "__main__":
    main()
