"""Latent attention: what it caches, and that attending to the latents is attending to the expanded keys and values."""

import pytest
import torch
from transformers import DynamicCache

from hf_ext.layers import LatentAttention, RoPE


SIZES = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}


def layer(**options) -> LatentAttention:
    torch.manual_seed(0)
    attention = LatentAttention(32, 4, **{**SIZES, "layer_idx": 0, **options}).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention


def run(attention, x, position=0, **kwargs):
    cos_sin = RoPE(dim=4)(torch.arange(position, position + x.shape[1])[None])
    return attention(x, cos_sin, **kwargs)


@pytest.mark.parametrize(
    "options", [{}, {"q_lora_rank": 10}, {"sinks": True, "softcap": 3.0}, {"output_gate": "headwise"}], ids=str
)
@torch.no_grad()
def test_cached_token_by_token_is_all_at_once(options):
    attention, x = layer(**options), torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    expected, _ = run(attention, x)
    cache = DynamicCache()
    outputs = [run(attention, x[:, :3], past_key_values=cache)[0]]
    outputs += [run(attention, x[:, t : t + 1], t, past_key_values=cache)[0] for t in range(3, 7)]
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cache_is_compressed():
    attention, cache = layer(), DynamicCache()
    run(attention, torch.randn(2, 7, 32), past_key_values=cache)
    numbers = sum(tensor.numel() for tensor in (cache.layers[0].keys, cache.layers[0].values))
    assert numbers == 2 * 7 * (12 + 4)  # a token: the latent and the rotated key, whatever the number of heads


@torch.no_grad()
def test_adapter_on_the_expansion_is_not_passed_by():
    """The matrix is read directly for a single query: not when something wraps it."""
    attention, x = layer(), torch.randn(1, 4, 32)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    wrapped = Doubled(12, 4 * 14, bias=False)
    wrapped.weight = attention.kv_b_proj.weight
    attention.kv_b_proj = wrapped
    expected, _ = run(attention, x)
    cache = DynamicCache()
    run(attention, x[:, :3], past_key_values=cache)
    torch.testing.assert_close(run(attention, x[:, 3:], 3, past_key_values=cache)[0], expected[:, 3:])


def test_gradients_reach_every_parameter():
    attention = layer(q_lora_rank=10, output_gate="elementwise", sinks=True, bias=True)
    run(attention, torch.randn(2, 5, 32))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attention.parameters())
