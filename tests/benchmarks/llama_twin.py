"""Our decoder and transformers' Llama of the same shape with the same weights, and what the machine itself can do."""

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.ops.matrix_product import linear


SIDES = ("llama", "hf_ext")


def build(side: str, sizes: dict) -> PreTrainedModel:
    """The model of `side` with SwiGLU, RMSNorm and RoPE. Parameters have the same names and values on both sides."""
    sizes = {"num_key_value_heads": sizes["num_attention_heads"], **sizes}
    if side == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, rms_norm_eps=1e-6))
    else:
        model = HfxDecoderForCausalLM(HfxDecoderConfig(**sizes, norm_eps=1e-6, bos_token_id=1, eos_token_id=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model


def matmul_rate(size: int = 2048) -> float:
    """fp32 operations a second of a square matrix product, of the faster of torch's libraries: medians of 7."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(median_seconds(lambda: a @ b, 7), median_seconds(lambda: linear(a, b), 7))


def read_bandwidth(num_bytes: int = 512 * 2**20) -> float:
    """Bytes a second of reading memory once, far more of it than caches hold: the median of 7 sums."""
    memory = torch.ones(num_bytes // 4)
    return num_bytes / median_seconds(memory.sum, 7)


def median_seconds(function, repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
