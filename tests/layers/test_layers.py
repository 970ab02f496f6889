"""The parts against torch's own, and the blocks against their equations."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_ext.layers import (
    ACTIVATIONS,
    BLOCKS,
    AxialRotaryEmbedding,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    MultiHeadAttention,
    RMSNorm,
    RoPE,
    RotaryEmbedding,
    UnitOffsetRMSNorm,
)
from hf_ext.ops.rotary import apply_rotary_to


# one layer in fp32: a few ulp
FP32 = {"atol": 1e-6, "rtol": 1e-5}


def x(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_norms_are_torch_s(dtype):
    for ours, theirs in (
        (RMSNorm(12, eps=1e-3), nn.RMSNorm(12, eps=1e-3)),
        (UnitOffsetRMSNorm(12, eps=1e-3), nn.RMSNorm(12, eps=1e-3)),
        (LayerNorm(12, eps=1e-3), nn.LayerNorm(12, eps=1e-3)),
        (LayerNorm(12, eps=1e-3, bias=False), nn.LayerNorm(12, eps=1e-3, bias=False)),
    ):
        for p in ours.parameters():
            nn.init.normal_(p)
        theirs.load_state_dict(ours.state_dict())
        if isinstance(ours, UnitOffsetRMSNorm):
            theirs.weight.data += 1
        states = x(2, 5, 12, dtype=dtype) * 3
        got = ours.to(dtype)(states)
        assert got.dtype == dtype
        # bf16: the weight multiplies a rounded result here and an exact one in torch
        tolerance = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else FP32
        torch.testing.assert_close(got, theirs.to(dtype)(states), **tolerance)


def test_rms_statistics_are_fp32():
    """Squares of 300 overflow fp16 and their mean is lost in bf16."""
    states = torch.full((1, 64), 300.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(64).half()(states), torch.ones(1, 64, dtype=torch.float16))


def test_activations_are_transformers_own():
    from transformers.activations import ACT2FN

    for name, activation in ACTIVATIONS.items():
        torch.testing.assert_close(activation(x(100)), ACT2FN[name](x(100)), **FP32)


def test_feed_forwards_are_their_equations():
    plain = FeedForward(8, 24, activation="relu2", bias=True)
    expected = plain.down_proj(plain.up_proj(x(2, 3, 8)).clamp(min=0) ** 2)
    torch.testing.assert_close(plain(x(2, 3, 8)), expected)
    gated = GatedFeedForward(8, 24, activation="silu")
    gate = gated.gate_proj(x(2, 3, 8))
    expected = gated.down_proj(gate * torch.sigmoid(gate) * gated.up_proj(x(2, 3, 8)))
    torch.testing.assert_close(gated(x(2, 3, 8)), expected, **FP32)


@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_is_torch_s_multihead_attention(is_causal):
    ours = MultiHeadAttention(32, 4, bias=True, is_causal=is_causal)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.data = torch.cat([p.weight.data for p in projections])
    theirs.in_proj_bias.data = torch.cat([p.bias.data for p in projections])
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    states = x(2, 7, 32) * 5
    mask = nn.Transformer.generate_square_subsequent_mask(7) if is_causal else None
    expected, expected_weights = theirs(
        states, states, states, attn_mask=mask, is_causal=is_causal, average_attn_weights=False
    )
    got, weights = ours(states)
    torch.testing.assert_close(got, expected, **FP32)
    torch.testing.assert_close(weights, expected_weights, **FP32)


def test_grouped_query_attention_repeats_the_heads():
    grouped = MultiHeadAttention(32, 4, num_key_value_heads=2)
    full = MultiHeadAttention(32, 4)
    for name in ("q_proj", "o_proj"):
        getattr(full, name).load_state_dict(getattr(grouped, name).state_dict())
    for name in ("k_proj", "v_proj"):
        weight = getattr(grouped, name).weight.data.view(2, 8, 32)
        getattr(full, name).weight.data = weight.repeat_interleave(2, dim=0).reshape(32, 32)
    torch.testing.assert_close(grouped(x(2, 7, 32))[0], full(x(2, 7, 32))[0], **FP32)


@pytest.mark.parametrize("kind", ["head", "projection"])
def test_qk_norm_bounds_the_scores(kind):
    """Whatever the scale of the input: a normed query and key give the same weights."""
    attention = MultiHeadAttention(32, 4, num_key_value_heads=2, qk_norm=kind)
    torch.testing.assert_close(attention(x(1, 6, 32))[1], attention(100 * x(1, 6, 32))[1], atol=1e-4, rtol=1e-4)
    plain = MultiHeadAttention(32, 4)
    assert (plain(x(1, 6, 32))[1] - plain(100 * x(1, 6, 32))[1]).abs().max() > 0.1


def test_wrong_sizes_are_refused():
    for arguments, message in (
        ({"d_model": 30, "num_heads": 4}, "must divide hidden_size=30"),
        ({"d_model": 32, "num_heads": 4, "num_key_value_heads": 3}, "must divide num_attention_heads=4"),
        ({"d_model": 32, "num_heads": 0}, "num_attention_heads=0: must be at least 1"),
        ({"d_model": 32, "num_heads": 4, "qk_norm": "both"}, "qk_norm='both'"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiHeadAttention(**arguments)


def test_blocks_read_like_their_equations():
    class Double(nn.Module):
        def forward(self, hidden_states, **kwargs):
            return 2 * hidden_states, None

    def norm():
        return LayerNorm(8)

    states = x(2, 3, 8)
    n = LayerNorm(8)  # a new norm is the same function everywhere
    triple = nn.Linear(8, 8, bias=False)
    triple.weight.data = 3 * torch.eye(8)
    expected = {}
    a = states + 2 * n(states)
    expected["pre_norm"] = a + 3 * n(a)
    a = n(states + 2 * states)
    expected["post_norm"] = n(a + 3 * a)
    a = states + n(2 * n(states))
    expected["sandwich"] = a + n(3 * n(a))
    a = states + n(2 * states)
    expected["reordered_norm"] = a + n(3 * a)
    expected["parallel"] = states + 2 * n(states) + 3 * n(states)
    expected["parallel_two_norms"] = expected["parallel"]
    assert expected.keys() == BLOCKS.keys()
    for name, block in BLOCKS.items():
        torch.testing.assert_close(block(Double(), triple, norm)(states), expected[name], atol=1e-5, rtol=1e-5)
    two = BLOCKS["parallel_two_norms"](Double(), triple, norm)
    two.post_attention_layernorm.weight.data *= 5
    torch.testing.assert_close(two(states), states + 2 * n(states) + 15 * n(states), atol=1e-5, rtol=1e-5)


def test_rotary_embedding_keeps_its_frequencies_in_fp32():
    rope = RotaryEmbedding(16, 64)
    exact = rope.inv_freq.clone()
    for cast in (rope.half(), rope.to(torch.bfloat16), rope.double()):
        assert cast.inv_freq.dtype == torch.float32
        assert torch.equal(cast.inv_freq, exact)


def test_textbook_lines():
    attention = MultiHeadAttention(d_model=512, num_heads=8)
    rope = RoPE(dim=64, max_position_embeddings=2048)
    cos_sin = rope(torch.arange(10)[None])
    assert attention(torch.randn(1, 10, 512), position_embeddings=cos_sin)[0].shape == (1, 10, 512)
    assert RoPE(dim=512, max_position_embeddings=2048).inv_freq.shape == (256,)


def test_axial_rotary_is_two_rotations():
    """Rows turn the first half of the pairs, columns the second, as in transformers' Qwen2-VL."""
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLVisionRotaryEmbedding

    rope = AxialRotaryEmbedding(dim=16, grid_width=3)
    cos, sin = rope(torch.arange(6)[None])
    rows_columns = torch.tensor([[t // 3, t % 3] for t in range(6)])
    theirs = Qwen2VLVisionRotaryEmbedding(Qwen2VLVisionConfig(embed_dim=32, num_heads=2))
    their_cos, their_sin = theirs(cos, rows_columns)
    torch.testing.assert_close(cos[0], their_cos)
    torch.testing.assert_close(sin[0], their_sin)
    torch.testing.assert_close(rope(rows_columns[None])[0], cos)


@pytest.mark.parametrize("interleaved", [False, True])
def test_axial_scores_depend_on_the_offset_alone(interleaved):
    rope = AxialRotaryEmbedding(dim=16, grid_width=10, interleaved=interleaved)
    query, key = x(1, 1, 1, 16), x(1, 1, 1, 16).flip(-1)

    def score(query_at, key_at):
        q = apply_rotary_to(query, *rope(torch.tensor([[query_at]])), interleaved)
        k = apply_rotary_to(key, *rope(torch.tensor([[key_at]])), interleaved)
        return float((q * k).sum())

    # 2 rows down and 1 column left, wherever it starts
    assert score((2, 5), (4, 4)) == pytest.approx(score((0, 1), (2, 0)), abs=1e-5)
    assert score((2, 5), (4, 4)) != pytest.approx(score((2, 5), (4, 5)), abs=1e-3)


def test_axial_refusals():
    with pytest.raises(ValueError, match="head_dim=6: must be a multiple of 4"):
        AxialRotaryEmbedding(dim=6, grid_width=3)
    with pytest.raises(ValueError, match="rope_type='dynamic': depends on the length"):
        AxialRotaryEmbedding(dim=8, grid_width=3, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ValueError, match="position_ids: single numbers need grid_width"):
        AxialRotaryEmbedding(dim=8)(torch.arange(4)[None])


@pytest.mark.parametrize("sinks", [False, True])
def test_transformers_paged_attention_takes_the_sinks_from_the_module(sinks):
    """Continuous batching of an eager model; any attribute called `sinks` is taken for a tensor there."""
    from transformers.integrations.eager_paged import eager_paged_attention_forward

    attention = MultiHeadAttention(32, 4, num_key_value_heads=2, sinks=sinks)
    if sinks:
        torch.nn.init.normal_(attention.sinks, std=2.0)
    cache = SimpleNamespace(update=lambda key_states, value_states, **kwargs: (key_states, value_states))
    hidden_states = torch.randn(1, 7, 32)
    mask = torch.full((1, 1, 7, 7), torch.finfo(torch.float32).min).triu(1)
    paged, _ = attention(
        hidden_states, attention_mask=mask, attention_interface=eager_paged_attention_forward, cache=cache
    )
    torch.testing.assert_close(paged, attention(hidden_states)[0], atol=1e-6, rtol=1e-5)
