"""Translation against transformers' T5 of the same shape: training tokens a second, peak memory, and beam search.

    python tests/benchmarks/encoder_decoder.py [--steps 20] [--rounds 3] [--batch 64] [--beams 4]

Pairs of Multi30k (German, English) in their order in the file. T5 pads a batch to its longest; ours does too, with
`padding_free` off and on, and packs pairs into rows. Both sides in `HfxTrainer` with fused AdamW, fp32; tokens of
padding don't count. Each case runs in a process of its own, sides in turn; medians over rounds.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from training_run import WARM_UP, in_own_process, time_training
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxEncoderDecoderConfig, HfxEncoderDecoderForConditionalGeneration
from hf_ext.objectives import SequenceToSequenceCollator


DATA = Path(os.environ.get("HF_EXT_DATA", "../shared/data")) / "multi30k"
VOCABULARY, PAD, EOS = 8192, 1, 0
NEW_TOKENS = 24  # of beam search
LAYERS, WIDTH, HEADS, INNER = 4, 256, 4, 1024
COLLATE = SequenceToSequenceCollator(vocab_size=VOCABULARY, pad_token_id=PAD, decoder_start_token_id=PAD)
CASES = {
    "t5": "transformers' T5, padded",
    "padded": "hf_ext, padded",
    "padding_free": "hf_ext, padding-free",
    "packed": "hf_ext, packed",
}


def build(side: str) -> PreTrainedModel:
    """A T5 of relative positions, RMSNorm before each sublayer and a gated tanh-GELU, tied and scaled, without dropout."""
    torch.manual_seed(0)
    if side == "t5":
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=INNER,
            num_layers=LAYERS,
            num_heads=HEADS,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
            use_cache=True,
        )
        return T5ForConditionalGeneration(config)
    config = HfxEncoderDecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_act="gelu_new",
        position_embedding_type="relative",
        query_pre_attn_scalar=1,
        output_multiplier=WIDTH**-0.5,
        initializer_range=WIDTH**-0.5,
        pad_token_id=PAD,
        eos_token_id=EOS,
        padding_free=side != "padded",
    )
    return HfxEncoderDecoderForConditionalGeneration(config)


def pairs(count: int) -> list[dict]:
    """The first `count` pairs as token ids, each side ended by EOS."""
    texts = [(DATA / f"train.{language}").read_text(encoding="utf-8").splitlines() for language in ("de", "en")]
    if len(texts[0]) < count:
        raise SystemExit(f"{count} pairs needed, {len(texts[0])} there; take fewer steps or a smaller batch")
    tokenizer = train_tokenizer([*texts[0], *texts[1]], vocab_size=VOCABULARY, model_max_length=512)
    sides = [[[*tokenizer(text)["input_ids"], EOS] for text in side[:count]] for side in texts]
    return [{"input_ids": source, "labels": target} for source, target in zip(*sides, strict=True)]


def packed(rows: list[dict], batch_size: int) -> list[dict]:
    """One row for each batch of pairs, with positions that restart: the same pairs a step on all sides."""
    return [
        {
            "input_ids": [token for row in batch for token in row["input_ids"]],
            "position_ids": [i for row in batch for i in range(len(row["input_ids"]))],
            "labels": [token for row in batch for token in row["labels"]],
            "decoder_position_ids": [i for row in batch for i in range(len(row["labels"]))],
        }
        for batch in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    ]


def measure(side: str, batch_size: int, steps: int) -> dict[str, float]:
    """One training run; tokens are those of both sides, without padding."""
    rows = pairs((steps + WARM_UP) * batch_size)
    if side == "packed":
        rows = packed(rows, batch_size)

    def count(batch: dict) -> int:
        sources = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        return int(sources + (batch["labels"] != -100).sum())

    return time_training(
        lambda: build(side),
        rows,
        COLLATE,
        count,
        batch_size=1 if side == "packed" else batch_size,
        steps=steps,
    )


def beam_search(rounds: int, beams: int) -> dict[str, float]:
    """Side -> new tokens a second of `generate` for 8 sources, the median over rounds, sides in turn."""
    transformers.logging.set_verbosity_error()
    batch = COLLATE(pairs(512)[:8])
    models = {side: build(side).eval() for side in ("t5", "padding_free")}
    seconds = {side: [] for side in models}
    for _ in range(rounds):
        for side, model in models.items():
            start = time.perf_counter()
            model.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                num_beams=beams,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
            )
            seconds[side].append(time.perf_counter() - start)
    return {side: len(batch["input_ids"]) * NEW_TOKENS / statistics.median(found) for side, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="pairs a step")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--case")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return

    parameters = {side: sum(p.numel() for p in build(side).parameters()) for side in ("t5", "packed")}
    if len(set(parameters.values())) != 1:
        raise SystemExit(f"the two are not of one shape: {parameters}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}; {parameters['t5'] / 1e6:.1f}M parameters, fp32")
    print(f"{arguments.batch} pairs a step; median of {arguments.rounds} x {arguments.steps} steps, sides in turn\n")
    found = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case in CASES:
            found[case].append(in_own_process(__file__, case, arguments.batch, arguments.steps))
    print("| training | tokens/s | against T5 | peak MB | against T5 | loss |\n| --- | --- | --- | --- | --- | --- |")
    middle = {case: {k: statistics.median(run[k] for run in runs) for k in runs[0]} for case, runs in found.items()}
    for case, name in CASES.items():
        row, other = middle[case], middle["t5"]
        print(
            f"| {name} | {row['count_a_second']:.0f} | {row['count_a_second'] / other['count_a_second']:.2f} "
            f"| {row['megabytes']:.0f} | {row['megabytes'] / other['megabytes']:.2f} | {row['loss']:.3f} |"
        )
    rates = beam_search(arguments.rounds, arguments.beams)
    print(f"\n| {arguments.beams} beams, 8 sources | tokens/s | against T5 |\n| --- | --- | --- |")
    for side, rate in rates.items():
        print(f"| {CASES[side]} | {rate:.0f} | {rate / rates['t5']:.2f} |")


if __name__ == "__main__":
    main()
