"""Decoding by exports against torch: tokens a second of `generate`, greedy, and what an export takes.

    python tests/benchmarks/exported_decoding.py [--sides llama,torch,onnx,onnx:int8_dynamic]
        [--new_tokens 64] [--prompt_tokens 32] [--rounds 5] [--layers 12] [--hidden_size 768]

A side is llama (transformers' Llama of the same weights, fp32), torch (our model, fp32) or TARGET[:QUANTIZATION]. Sides in
turn in one process, one row, the first token left out; shown are medians.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from decoding import generate, processor
from llama_twin import build

from hf_ext.export import HfxExportedModelForCausalLM, export_model
from hf_ext.export.targets import TARGETS


SIDES = "llama,torch,onnx,onnx:int8_dynamic,openvino,openvino:int8,openvino:int4"
HEAD_DIM = 64


def sizes_of(layers: int, hidden_size: int) -> dict:
    """A decoder of 110M parameters at 12 layers of 768."""
    return {
        "vocab_size": 32_000,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // HEAD_DIM,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


def opened(side: str, model, sizes: dict, folder: Path) -> tuple:
    """The model that a side runs, seconds that the export took, its megabytes."""
    if side in ("llama", "torch"):
        model = build("llama", sizes).eval() if side == "llama" else model
        return model, 0.0, sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    target, _, quantize = side.partition(":")
    start = time.perf_counter()
    exported = export_model(model, target, folder / side.replace(":", "_"), quantize=quantize or None)
    seconds = time.perf_counter() - start
    files = [path for path in exported.folder.iterdir() if path.name.startswith("model")]
    megabytes = sum(path.stat().st_size for path in files) / 2**20
    return HfxExportedModelForCausalLM.from_pretrained(exported.folder), seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sides", default=SIDES, help=f"llama, torch, or of {', '.join(TARGETS)} with :QUANTIZATION or not"
    )
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden_size", type=int, default=768, help=f"a multiple of {HEAD_DIM}")
    arguments = parser.parse_args()
    if arguments.new_tokens < 2:
        parser.error(f"--new_tokens={arguments.new_tokens}: must be at least 2, the first token is not measured")
    transformers.logging.set_verbosity_error()
    sizes = sizes_of(arguments.layers, arguments.hidden_size)
    model = build("hf_ext", sizes).eval()
    prompt = torch.randint(3, 32_000, (1, arguments.prompt_tokens), generator=torch.Generator().manual_seed(1))
    print(
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, one row, greedy, ", end="")
    print(f"{arguments.prompt_tokens} + {arguments.new_tokens} tokens, median of {arguments.rounds}, sides in turn\n")
    with TemporaryDirectory() as folder:
        sides = {side: opened(side, model, sizes, Path(folder)) for side in arguments.sides.split(",")}
        texts = {side: generate(one, prompt, arguments.new_tokens)[1] for side, (one, *_) in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, (one, *_) in sides.items():
                prepared = generate(one, prompt, 1)[0]
                whole = generate(one, prompt, arguments.new_tokens)[0]
                seconds[side].append((whole - prepared) / (arguments.new_tokens - 1))
    first = next(iter(sides))
    print(f"| | tokens/s | against {first} | weights, MB | export, s | tokens as {first}'s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for side, (_, export, megabytes) in sides.items():
        rate, against = 1 / statistics.median(seconds[side]), statistics.median(seconds[first])
        same = int((texts[side] == texts[first])[0, arguments.prompt_tokens :].long().cumprod(dim=0).sum())
        print(f"| {side} | {rate:.1f} | {against * rate:.2f} | {megabytes:.0f} | {export:.0f} ", end="")
        print(f"| {same} of {arguments.new_tokens} |")


if __name__ == "__main__":
    main()
