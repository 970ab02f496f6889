"""FLOPs against the equations, and against torch's own counter on a real forward and backward pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_ext import HfxDecoderConfig
from hf_ext.models import HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.training.scaling import cache_size, count_flops
from hf_ext.training.scaling.flops import visible_pairs


d, width, L, V, H, K, T = 64, 96, 3, 100, 4, 2, 48
SIZES = {
    "hidden_size": d,
    "intermediate_size": width,
    "num_hidden_layers": L,
    "vocab_size": V,
    "num_attention_heads": H,
    "max_position_embeddings": 64,
}
DECODER = SIZES | {"num_key_value_heads": K}


def decoder(**options) -> HfxDecoderConfig:
    return HfxDecoderConfig(**DECODER | options)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 11, 20])
def test_visible_pairs_are_those_of_the_mask(is_causal, window):
    query, key = torch.arange(11)[:, None], torch.arange(11)
    seen = (key <= query) if is_causal else torch.ones(11, 11, dtype=torch.bool)
    if window is not None:
        seen &= (query - key).abs() < window
    assert visible_pairs(11, 11, is_causal=is_causal, window=window) == int(seen.sum())


def test_parts_are_the_equations():
    counted = count_flops(decoder(), T)
    D = d // H
    assert counted.forward == {
        "attention": 2 * T * L * (2 * d * d + 2 * d * K * D),
        "feed_forward": 2 * T * L * 3 * d * width,
        "head": 2 * T * d * V,
        "attention_pairs": L * 2 * H * 2 * D * T * (T + 1) // 2,
    }
    assert counted.training_per_token == 3 * sum(counted.forward.values()) / T
    assert counted.checkpointed_per_token == (4 * sum(counted.forward.values()) - counted.forward["head"]) / T
    without_pairs = 3 * (sum(counted.forward.values()) - counted.forward["attention_pairs"]) / T
    norms = 6 * (2 * L + 1) * d  # N has them, and they are no products
    assert counted.rule_per_token - norms == without_pairs
    assert counted.decoding == (without_pairs / 3) + L * 2 * H * 2 * D * (T + 1)


def test_torch_counts_the_same_products():
    """All but attention, which its counter doesn't know on a CPU; eager, which it does know, computes what no query sees."""
    config = LlamaConfig(**DECODER)
    counted = count_flops(config, T)
    products = sum(counted.forward.values()) - counted.forward["attention_pairs"]
    for attention, pairs in (("sdpa", 0), ("eager", L * 2 * H * 2 * (d // H) * T * T)):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
        ids = torch.zeros(1, T, dtype=torch.long)
        with FlopCounterMode(display=False) as forward:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        assert forward.get_total_flops() == products + pairs
        assert backward.get_total_flops() == 2 * (products + pairs)


def test_windows_latents_and_grouped_heads():
    pairs = {
        name: count_flops(decoder(**options), T).forward["attention_pairs"]
        for name, options in {
            "full": {},
            "window": {"sliding_window": 8},
            "mixed": {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "latent": {"attention_type": "latent", "num_key_value_heads": H},
        }.items()
    }
    one = pairs["full"] // L
    windowed = 2 * H * 2 * (d // H) * visible_pairs(T, T, is_causal=True, window=8)
    assert pairs["window"] == L * windowed
    assert pairs["mixed"] == 2 * one + windowed
    # queries and keys have half as many dims again, values don't
    assert pairs["latent"] == pairs["full"] * 5 // 4


def test_experts_count_those_that_a_token_is_sent_to():
    E, k, narrow = 8, 3, 32
    options = {"num_experts": E, "num_experts_per_tok": k, "moe_intermediate_size": narrow}
    counted = count_flops(decoder(**options), T)
    assert counted.forward["experts"] == 2 * T * L * k * 3 * d * narrow
    assert counted.forward["router"] == 2 * T * L * E * d
    more = count_flops(decoder(**options, num_nextn_predict_layers=1), T)
    assert more.decoding == counted.decoding  # further tokens are predicted in training alone
    assert more.training_per_token > counted.training_per_token
    assert more.forward["head"] > 2 * counted.forward["head"]  # the head once more, and what joins the embeddings


def test_encoders_see_both_sides():
    counted = count_flops(HfxEncoderConfig(**SIZES), T)
    assert counted.forward["attention_pairs"] == L * 2 * H * 2 * (d // H) * T * T
    assert counted.decoding is None
    assert count_flops(HfxEncoderConfig(**SIZES), T, scored=0.25).forward["head"] == counted.forward["head"] // 4


def test_encoder_decoders_pay_for_both_stacks():
    S = 20
    counted = count_flops(HfxEncoderDecoderConfig(**SIZES, encoder_layers=2), T, source_length=S)
    D, per_pair = d // H, 2 * H * 2 * (d // H)
    assert counted.tokens == S + T
    assert counted.forward["attention_pairs"] == per_pair * (2 * S * S + L * (T * (T + 1) // 2 + T * S))
    own, cross_queries, cross_keys = 4 * d * d, 2 * d * d, 2 * d * H * D
    assert counted.forward["attention"] == 2 * (2 * S * own + L * (T * (own + cross_queries) + S * cross_keys))
    dense = 2 * L * (own + cross_queries) + 2 * L * (counted.parameters.by_part["feed_forward"] // (L + 2)) + 2 * d * V
    assert counted.decoding == dense + L * per_pair * (T + 1 + S)


def test_cache_of_keys_and_values():
    bytes_of_one = 2 * 2 * K * (d // H)  # bf16, keys and values
    size = cache_size(decoder(), T)
    assert (size.own, size.growth, size.source) == (L * T * bytes_of_one, L * bytes_of_one, 0)
    windowed = cache_size(decoder(sliding_window=8), T)
    assert (windowed.own, windowed.growth) == (L * 7 * bytes_of_one, 0)  # the next token brings its own
    latent = cache_size(decoder(attention_type="latent", kv_lora_rank=24, qk_rope_head_dim=8, num_key_value_heads=H), T)
    assert latent.growth == L * 2 * (24 + 8)
    both = cache_size(HfxEncoderDecoderConfig(**SIZES), T, source_length=20)
    assert (both.own, both.source) == (L * T * 2 * 2 * d, L * 20 * 2 * 2 * d)
    assert cache_size(decoder(), T, dtype=torch.float32).own == 2 * size.own


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_flops(decoder(), 65), "length=65: longer than max_position_embeddings=64"),
        (lambda: count_flops(decoder(), 0), "length=0: must be a whole number of at least 1"),
        (lambda: count_flops(decoder(), 8, scored=0), "scored=0: must be above 0 and at most 1"),
        (lambda: cache_size(HfxEncoderConfig(**SIZES), 8), "head='masked': HfxEncoderConfig generates nothing"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
