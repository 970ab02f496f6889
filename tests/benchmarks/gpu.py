"""What the kernels reach on a CUDA device, against torch's own in the same run.

    python tests/benchmarks/gpu.py [--parts attention decoding elementwise training tiles] [--out DIR]

Parts, all but `tiles` by default:
    attention   forward and backward of causal and full attention, bf16, 16 heads of 128 and of 64, as many tokens at every
                length: TFLOP/s and peak memory of eager, torch's flash and cuDNN paths, flex_attention and ours
    decoding    one query a row against 8,192 cached keys, batch 1, 8 and 64: bytes of the cache a second
    elementwise RMSNorm, SwiGLU, rotary, the last layer with its loss: torch, compiled, Triton
    training    a step of a decoder of a billion parameters, ours with our kernels against Llama with sdpa
    tiles       every candidate of tile sizes, each kernel by itself

Medians by CUDA events; the second-level cache is overwritten between two runs. Tables here, JSON and plots into DIR
(outputs/benchmarks). Without a CUDA device it says so and ends.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from gpu_timing import attention_operations, copy_bandwidth, matmul_rate, median_milliseconds, peak_megabytes


PARTS = ("attention", "decoding", "elementwise", "training")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
TOKENS = 16384  # of all rows of a call
HEADS = 16
LONGEST_EAGER = 4096  # its scores and their gradients exist whole
FLEX_LENGTHS = (2048, 8192)  # every length is a compilation
COLORS = {
    "eager": "#c8553d",
    "sdpa flash": "#5b8c5a",
    "sdpa cuDNN": "#8a6fa8",
    "flex": "#c99a2e",
    "hfx_triton": "#3b6ea5",
}


def attention_calls(B: int, T: int, D: int, is_causal: bool) -> dict:
    """Name -> function of query, key, value (B, H, T, D); those that this size allows."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from hf_ext.ops.eager_attention import eager_attention
    from hf_ext.ops.triton.triton_attention import triton_attention

    def torch_with(backend):
        def attend(*inputs):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=is_causal)

        return attend

    calls = {}
    if T <= LONGEST_EAGER:
        calls["eager"] = lambda *inputs: eager_attention(*inputs, is_causal=is_causal)[0]
    calls["sdpa flash"] = torch_with(SDPBackend.FLASH_ATTENTION)
    calls["sdpa cuDNN"] = torch_with(SDPBackend.CUDNN_ATTENTION)
    if T in FLEX_LENGTHS and D == 128 and is_causal:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, T, T, device="cuda")
        compiled = torch.compile(flex_attention, dynamic=False)
        calls["flex"] = lambda *inputs: compiled(*inputs, block_mask=mask)
    calls["hfx_triton"] = lambda *inputs: triton_attention(*inputs, is_causal=is_causal)
    return calls


def measure_attention(lengths: list[int], head_dims: list[int]) -> list[dict]:
    rows = []
    for D in head_dims:
        for is_causal in (True, False):
            for T in lengths:
                B = max(1, TOKENS // T)
                torch.manual_seed(0)
                inputs = [
                    torch.randn(B, T, HEADS, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
                    for _ in range(3)
                ]
                grad = torch.randn(B, T, HEADS, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
                operations = attention_operations(B, HEADS, T, D, is_causal=is_causal)
                for name, attend in attention_calls(B, T, D, is_causal).items():
                    rows.append(measure_call(name, attend, inputs, grad, operations))
                    rows[-1] |= {"T": T, "B": B, "D": D, "causal": is_causal}
    return rows


def measure_call(name: str, attend, inputs: list[torch.Tensor], grad: torch.Tensor, operations) -> dict:
    def forward():
        with torch.no_grad():
            return attend(*inputs)

    def both():
        torch.autograd.grad(attend(*inputs), inputs, grad)

    try:
        forward_time = median_milliseconds(forward, budget=0.1)
        output = attend(*inputs)
        backward_time = median_milliseconds(
            lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True), budget=0.2
        )
        memory = peak_megabytes(both)
    except RuntimeError as error:  # torch has no such kernel for it, or it doesn't fit
        return {"name": name, "failure": str(error).splitlines()[0][:100]}
    return {
        "name": name,
        "forward": operations[0] / forward_time / 1e9,
        "backward": operations[1] / backward_time / 1e9,
        "forward_ms": forward_time,
        "backward_ms": backward_time,
        "megabytes": memory,
    }


def print_attention(rows: list[dict]) -> None:
    names = [name for name in COLORS if any(row["name"] == name for row in rows)]
    for D, causal in sorted({(row["D"], row["causal"]) for row in rows}, reverse=True):
        print(f"\nhead dim {D}, {'causal' if causal else 'full'}: TFLOP/s forward / backward, MB")
        print("| tokens | rows | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 2) + "|")
        for T in sorted({row["T"] for row in rows}):
            found = {row["name"]: row for row in rows if (row["D"], row["causal"], row["T"]) == (D, causal, T)}
            cells = []
            for name in names:
                row = found.get(name)
                if row is None or "failure" in row:
                    cells.append("" if row is None else row["failure"][:40])
                else:
                    cells.append(f"{row['forward']:.0f} / {row['backward']:.0f}, {row['megabytes']:.0f}")
            print(f"| {T} | {max(1, TOKENS // T)} | " + " | ".join(cells) + " |")


def draw_attention(rows: list[dict], path: Path, device: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(row["D"], row["causal"]) for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(2, len(panels), figsize=(4.2 * len(panels), 6.4), sharey="row", squeeze=False)
    for column, (D, causal) in enumerate(panels):
        for line, what in enumerate(("forward", "backward")):
            axis = axes[line][column]
            for name, color in COLORS.items():
                points = [
                    (row["T"], row[what])
                    for row in rows
                    if row["name"] == name and (row["D"], row["causal"]) == (D, causal) and what in row
                ]
                if points:
                    axis.plot(*zip(*sorted(points), strict=True), "o-", color=color, label=name, markersize=3)
            axis.set_xscale("log", base=2)
            axis.set_title(f"{what}, head dim {D}, {'causal' if causal else 'full'}", fontsize=9)
            axis.grid(alpha=0.3)
            axis.set_ylim(bottom=0)
        axes[1][column].set_xlabel("tokens a row")
    axes[0][0].set_ylabel("TFLOP/s")
    axes[1][0].set_ylabel("TFLOP/s")
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(f"Attention in bf16 on {device}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def measure_decoding() -> list[dict]:
    """One query a row, 32 heads of 128 on 8 key/value heads, 8,192 keys."""
    from hf_ext.ops.triton.triton_attention import triton_attention

    rows = []
    for B in (1, 8, 64):
        query = torch.randn(B, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
        key, value = (torch.randn(B, 8, 8192, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        calls = {
            "sdpa": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            "hfx_triton": triton_attention,
        }
        for name, attend in calls.items():
            with torch.no_grad():
                milliseconds = median_milliseconds(lambda f=attend, t=(query, key, value): f(*t), budget=0.1)
            num_bytes = 2 * key.numel() * key.element_size()
            rows.append({"name": name, "B": B, "milliseconds": milliseconds, "GB/s": num_bytes / milliseconds / 1e6})
    return rows


SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def measure_training(batch_size: int, length: int, steps: int, peak: float) -> list[dict]:
    """A step each of both: bf16 weights, fused AdamW, no checkpointing. MFU by 6 operations a weight and token, and 12 a
    layer, head dim and pair of tokens, half of them for the causal mask."""
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM
    from hf_ext.ops.kernel_choice import kernels

    transformers.logging.set_verbosity_error()
    ours = HfxDecoderForCausalLM, HfxDecoderConfig(**SIZES, norm_eps=1e-6, bos_token_id=1, eos_token_id=2)
    sides = {
        "Llama + sdpa": (LlamaForCausalLM, LlamaConfig(**SIZES, rms_norm_eps=1e-6), "sdpa", "torch"),
        "ours, torch + sdpa": (*ours, "sdpa", "torch"),
        "ours, Triton + sdpa": (*ours, "sdpa", "triton"),
        "ours, Triton + hfx_triton": (*ours, "hfx_triton", "triton"),
    }
    ids = torch.randint(SIZES["vocab_size"], (batch_size, length), device="cuda")
    rows = []
    for name, (model_class, config, attention, choice) in sides.items():
        torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = model_class._from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        model.train()

        def step(model=model, optimizer=optimizer, choice=choice):
            with kernels(choice):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        first = float(step().detach())
        milliseconds = median_milliseconds(step, budget=0.4 * steps, most=steps)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        attention_size = SIZES["num_hidden_layers"] * SIZES["hidden_size"]
        operations = ids.numel() * (6 * num_weights + 12 * attention_size * length / 2)
        rows.append(
            {
                "name": name,
                "loss": first,
                "tokens/s": ids.numel() / milliseconds * 1e3,
                "MFU": operations / milliseconds * 1e3 / peak,
                "megabytes": torch.cuda.max_memory_allocated() / 2**20,
                "parameters": num_weights,
            }
        )
        del model, optimizer, step
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "tiles"), default=PARTS)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head_dims", type=int, nargs="+", choices=(64, 128), default=(128, 64))
    parser.add_argument("--batch_size", type=int, default=4, help="rows of 4,096 tokens in a training step")
    parser.add_argument("--steps", type=int, default=6, help="training steps that are timed")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile tile sizes")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, nothing to measure")
        return
    import triton

    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name()
    rate, bandwidth = matmul_rate(), copy_bandwidth()
    torch.cuda.empty_cache()
    results = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "matmul TFLOP/s": rate / 1e12,
        "copy TB/s": bandwidth / 1e12,
    }
    print(", ".join(f"{name} {value:.2f}" if isinstance(value, float) else f"{value}" if name == "device" else
                    f"{name} {value}" for name, value in results.items()))  # fmt: skip

    def save(part: str, rows: list[dict], start: float) -> None:
        results[part] = rows
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1))
        print(f"[{part}: {time.perf_counter() - start:.0f} s]", flush=True)

    for part in arguments.parts:
        start = time.perf_counter()
        print(f"\n## {part}", flush=True)
        if part == "tiles":
            from gpu_tiles import print_sweep, sweep

            rows = sweep(list(arguments.head_dims), 8192, 2, arguments.workers)
            print_sweep(rows)
        elif part == "attention":
            rows = measure_attention(list(arguments.lengths), list(arguments.head_dims))
            print_attention(rows)
            draw_attention(rows, arguments.out / "gpu_attention.png", device)
        elif part == "decoding":
            rows = measure_decoding()
            for row in rows:
                share = row["GB/s"] * 1e9 / bandwidth
                rate_text = f"{row['milliseconds']:.3f} ms, {row['GB/s']:.0f} GB/s, {share:.0%} of the copy"
                print(f"batch {row['B']:>2} {row['name']:>10}: {rate_text}")
        elif part == "elementwise":
            from gpu_elementwise import measure_elementwise, print_elementwise

            rows = measure_elementwise()
            print_elementwise(rows, bandwidth)
        else:
            rows = measure_training(arguments.batch_size, 4096, arguments.steps, rate)
            for row in rows:
                print(
                    f"{row['name']:>25}: {row['tokens/s']:,.0f} tokens/s, MFU {row['MFU']:.1%}, {row['megabytes']:,.0f} MB, "
                    f"first loss {row['loss']:.3f}, {row['parameters'] / 1e9:.2f} billion parameters"
                )
        save(part, rows, start)


if __name__ == "__main__":
    main()
