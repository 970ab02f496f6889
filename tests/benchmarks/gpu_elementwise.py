"""RMSNorm, gated activation, rotary and cross-entropy in Triton against the same in torch, eager and compiled.

Each is bound by memory: shown are bytes a second, counting what has to be read and written once.
"""

import torch
from gpu_timing import median_milliseconds

from hf_ext.layers.feed_forward import ACTIVATIONS, gated
from hf_ext.layers.norms import RMSNorm
from hf_ext.ops.cross_entropy import linear_cross_entropy
from hf_ext.ops.kernel_choice import kernels
from hf_ext.ops.rotary import apply_rotary, rotary_cos_sin


TOKENS, WIDTH, INNER, VOCABULARY = 16384, 4096, 11008, 32000
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BF16 = 2  # bytes


def random(*shape) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def cases() -> dict:
    """Name -> function, inputs, bytes of forward, bytes of backward."""
    norm = RMSNorm(WIDTH).to("cuda", torch.bfloat16)
    cos, sin = rotary_cos_sin(
        torch.arange(4096, device="cuda")[None],
        1.0 / 10_000 ** (torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM),
        dtype=torch.bfloat16,
    )
    heads = [random(4, 4096, count, HEAD_DIM).transpose(1, 2).detach().requires_grad_() for count in (HEADS, KV_HEADS)]
    rows, inner = TOKENS * WIDTH * BF16, TOKENS * INNER * BF16
    turned = TOKENS * (HEADS + KV_HEADS) * HEAD_DIM * BF16
    return {
        "RMSNorm": (norm, [random(TOKENS, WIDTH)], 2 * rows, 3 * rows),
        "SwiGLU": (lambda g, u: gated(ACTIVATIONS["silu"], g, u), [random(TOKENS, INNER) for _ in range(2)],
                   3 * inner, 5 * inner),
        "rotary": (lambda q, k: apply_rotary(q, k, cos, sin), heads, 2 * turned, 2 * turned),
    }  # fmt: skip


def measure_elementwise() -> list[dict]:
    torch.manual_seed(0)
    rows = []
    for name, (function, inputs, forward_bytes, backward_bytes) in cases().items():
        for side in ("torch", "compiled", "triton"):
            call = torch.compile(function, dynamic=False) if side == "compiled" else function
            with kernels("torch" if side == "torch" else "triton"):
                outputs = call(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                grads = [torch.randn_like(output) for output in outputs]
                backward = median_milliseconds(
                    lambda o=outputs, i=inputs, g=grads: torch.autograd.grad(o, i, g, retain_graph=True), budget=0.05
                )
                with torch.no_grad():
                    forward = median_milliseconds(lambda c=call, i=inputs: c(*i), budget=0.05)
            rows.append(
                {
                    "name": name,
                    "side": side,
                    "forward_ms": forward,
                    "backward_ms": backward,
                    "forward": forward_bytes / forward / 1e6,
                    "backward": backward_bytes / backward / 1e6,
                }
            )
    return rows + measure_cross_entropy()


def measure_cross_entropy() -> list[dict]:
    """The last layer with its loss and gradients, 16,384 tokens, 2,048 dims, 32,000 words; no bytes, for it multiplies."""
    hidden, weight = random(TOKENS, 2048), random(VOCABULARY, 2048)
    labels = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    plain = lambda h, w: torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, w).float(), labels)  # noqa: E731
    calls = {
        "torch": ("torch", plain),
        "compiled": ("torch", torch.compile(plain, dynamic=False)),
        "chunks, torch": ("torch", lambda h, w: linear_cross_entropy(h, w, labels)),
        "triton": ("triton", lambda h, w: linear_cross_entropy(h, w, labels)),
    }
    rows = []
    for side, (choice, call) in calls.items():
        with kernels(choice):
            milliseconds = median_milliseconds(
                lambda c=call: torch.autograd.grad(c(hidden, weight), (hidden, weight)), budget=0.1
            )
        rows.append({"name": "linear + cross-entropy", "side": side, "both_ms": milliseconds})
    return rows


def print_elementwise(rows: list[dict], bandwidth: float) -> None:
    print("| what | by | forward GB/s (share of the copy) | backward GB/s | ms |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        if "both_ms" in row:
            cells = f" | | {row['both_ms']:.3f} both ways"
        else:
            cells = (
                f"{row['forward']:.0f} ({row['forward'] * 1e9 / bandwidth:.0%}) | {row['backward']:.0f} | "
                f"{row['forward_ms']:.3f}, {row['backward_ms']:.3f}"
            )
        print(f"| {row['name']} | {row['side']} | {cells} |")
