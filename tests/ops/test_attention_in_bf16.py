"""Attention in bf16 against the reference in fp64 on the same inputs: rounded, and nothing worse.

The tolerance is a multiple of bf16's epsilon, 2^-7, times the largest number of the tensor: rounding is relative to the
sums that a number is made of, so what cancels to nearly zero may be off by as much as the largest.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_ext.ops.eager_attention import causal_mask, eager_attention
from hf_ext.ops.flash_attention import flash_attention
from hf_ext.ops.score_bias import ScoreBias, alibi_slopes


EPSILON = torch.finfo(torch.bfloat16).eps
# backend -> epsilons of the output and of the gradients. Computed in fp32, an output is rounded once, by half an epsilon
# at most. eager computes scores and weights in bf16: a score of 10 is rounded by 0.04, and so are its weights, relatively.
# Backward reads rounded outputs and their rounded gradient, whose sums nearly cancel.
TOLERANCE = {"eager": (2.0, 2.0), "hfx_tiled": (0.5, 2.0), "sdpa": (0.5, 2.0)}

SHAPES = [  # B, H, K, T, S, D
    (2, 4, 4, 37, 37, 16),
    (1, 8, 2, 129, 129, 32),
    (2, 6, 1, 65, 65, 24),
    (2, 4, 2, 19, 83, 8),
    (2, 2, 2, 1, 77, 16),
]
OPTIONS = ("none", "softcap", "sinks", "bias")


def sdpa(query, key, value, *, mask):
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


BACKENDS = {
    "eager": lambda *states, **options: eager_attention(*states, **options)[0],
    "hfx_tiled": lambda *states, **options: flash_attention(*states, query_tile=16, key_tile=32, **options),
    "sdpa": sdpa,
}

# sdpa has none of the options
over_cases = pytest.mark.parametrize(
    ("backend", "option"), [(b, o) for b in BACKENDS for o in OPTIONS if b != "sdpa" or o == "none"]
)


def states(shape) -> list[torch.Tensor]:
    """Query, key, value and the output's gradient, in bf16; scores of a few units, so that attention is far from uniform."""
    B, H, K, T, S, D = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, T, D), (B, K, S, D), (B, K, S, D), (B, H, T, D)]
    query, *others = (torch.randn(*s, generator=generator) for s in shapes)
    return [tensor.bfloat16() for tensor in (query * 2, *others)]


def mask_with_an_empty_row(shape) -> torch.Tensor:
    """Causal, with padding in the last row of the batch, and one query that sees nothing."""
    B, _, _, T, S, _ = shape
    mask = causal_mask(S, S)[S - T :].expand(B, 1, T, S).clone()
    mask[-1, :, :, :3] = False
    mask[0, :, T // 2] = False
    return mask


def options_for(option: str, shape, dtype) -> dict:
    _, H, _, T, S, _ = shape
    generator = torch.Generator().manual_seed(1)
    if option == "softcap":
        return {"softcap": 3.0}
    if option == "sinks":
        return {"sinks": torch.randn(H, generator=generator).bfloat16().to(dtype)}
    if option == "bias":
        positions = torch.arange(S)[None]
        return {"bias": ScoreBias(alibi_slopes(H).to(dtype), positions[:, S - T :], positions)}
    return {}


def output_and_gradients(attend, tensors, weight, **options) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = attend(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, weight)]


def errors(backend: str, shape, option: str) -> dict[str, float]:
    """Largest error of each tensor, in epsilons of its largest number."""
    *tensors, weight = states(shape)
    mask = mask_with_an_empty_row(shape)
    expected = output_and_gradients(
        BACKENDS["eager"],
        [t.double() for t in tensors],
        weight.double(),
        mask=mask,
        **options_for(option, shape, torch.float64),
    )
    got = output_and_gradients(
        BACKENDS[backend], tensors, weight, mask=mask, **options_for(option, shape, torch.bfloat16)
    )
    assert all(tensor.dtype == torch.bfloat16 for tensor in got)
    names = ("output", "query", "key", "value")
    return {
        name: ((a.double() - b).abs().max() / b.abs().max() / EPSILON).item()
        for name, a, b in zip(names, got, expected, strict=True)
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@over_cases
def test_off_by_rounding_only(backend, shape, option):
    found = errors(backend, shape, option)
    output, gradient = TOLERANCE[backend]
    assert found.pop("output") <= output
    assert max(found.values()) <= gradient, found


@over_cases
def test_a_query_that_sees_nothing_gives_nothing(backend, option):
    """Exactly zero, and no gradient, in bf16 too."""
    shape = SHAPES[0]
    *tensors, weight = states(shape)
    mask = mask_with_an_empty_row(shape)
    output, query_gradient, *_ = output_and_gradients(
        BACKENDS[backend], tensors, weight, mask=mask, **options_for(option, shape, torch.bfloat16)
    )
    empty = shape[3] // 2
    for tensor in (output, query_gradient):
        assert tensor[0, :, empty].abs().max() == 0
        assert tensor[0, :, empty - 1].abs().max() > 0
