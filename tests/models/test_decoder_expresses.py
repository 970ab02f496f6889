"""Someone else's models: transformers' own architectures, weight by weight, as configurations of ours.

Each case says how their config reads as ours and how their names read as ours; the logits and the gradients must agree.
"""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM


# fp32: the same products, summed in another order where attention or norms are written differently
LOGITS = {"atol": 1e-5, "rtol": 1e-5}

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GROUPED = {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


def default_rope(theta=10_000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def unfuse_gpt2(weights: dict) -> dict:
    """GPT-2 keeps all queries, then all keys, then all values together, and its matrices transposed."""
    result = {}
    for name, weight in weights.items():
        if "_proj" in name and weight.ndim == 2:
            weight = weight.T
        if "c_attn" in name:
            parts = weight.T.chunk(3, dim=0) if weight.ndim == 2 else weight.chunk(3, dim=0)
            for letter, part in zip("qkv", parts, strict=True):
                result[name.replace("c_attn", f"{letter}_proj")] = part
        else:
            result[name] = weight
    return result


def unfuse_neox(weights: dict) -> dict:
    """GPT-NeoX keeps query, key and value of each head together."""
    result = {}
    for name, weight in weights.items():
        if "query_key_value" in name:
            by_head = weight.view(4, 3, 8, *weight.shape[1:])
            for i, letter in enumerate("qkv"):
                result[name.replace("query_key_value", f"{letter}_proj")] = by_head[:, i].flatten(0, 1)
        else:
            result[name] = weight
    return result


PLAIN = {"norm_type": "layernorm", "norm_eps": 1e-5, "mlp_type": "plain", "attention_bias": True, "mlp_bias": True}

# name -> their class, their config, our options, renames in their order, a change of their weights
CASES = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, **GROUPED, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
        {**GROUPED, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
        {},
        None,
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**SIZES, **GROUPED, sliding_window=5, rope_parameters=default_rope(500.0)),
        {**GROUPED, "sliding_window": 5, "rope_parameters": default_rope(500.0)},
        {},
        None,
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, **GROUPED, tie_word_embeddings=True, rope_parameters=default_rope()),
        {**GROUPED, "attention_bias": True, "attention_output_bias": False, "tie_word_embeddings": True},
        {},
        None,
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, **GROUPED, head_dim=16, rope_parameters=default_rope()),
        {**GROUPED, "head_dim": 16, "qk_norm": "head"},
        {},
        None,
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **SIZES, **GROUPED, head_dim=16, query_pre_attn_scalar=24, sliding_window=4, rope_parameters=default_rope()
        ),
        {
            **GROUPED,
            "head_dim": 16,
            "block_type": "sandwich",
            "norm_type": "rmsnorm_unit_offset",
            "hidden_act": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "embedding_multiplier": 32**0.5,
            "tie_word_embeddings": True,
        },
        {},
        None,
    ),
    "olmo2": (
        Olmo2ForCausalLM,
        Olmo2Config(**SIZES, **GROUPED, rope_parameters=default_rope()),
        {**GROUPED, "block_type": "reordered_norm", "qk_norm": "projection", "norm_eps": 1e-5},
        {},
        None,
    ),
    "phi": (
        PhiForCausalLM,
        PhiConfig(**SIZES, rope_parameters=default_rope(partial_rotary_factor=0.5)),
        {
            "block_type": "parallel",
            "norm_type": "layernorm",
            "norm_eps": 1e-5,
            "mlp_type": "plain",
            "hidden_act": "gelu_new",
            "attention_bias": True,
            "mlp_bias": True,
            "lm_head_bias": True,
            "rope_parameters": default_rope(partial_rotary_factor=0.5),
        },
        {"self_attn.dense": "self_attn.o_proj", "fc1": "up_proj", "fc2": "down_proj", "final_layernorm": "norm"},
        None,
    ),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(**SIZES, rope_parameters=default_rope(partial_rotary_factor=0.25)),
        {
            "block_type": "parallel_two_norms",
            "norm_type": "layernorm",
            "norm_eps": 1e-5,
            "mlp_type": "plain",
            "hidden_act": "gelu",
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": default_rope(partial_rotary_factor=0.25),
        },
        {
            "gpt_neox.": "model.",
            "embed_in": "embed_tokens",
            "embed_out": "lm_head",
            "attention.dense.": "self_attn.o_proj.",
            "attention.": "self_attn.",
            "dense_h_to_4h": "up_proj",
            "dense_4h_to_h": "down_proj",
            "final_layer_norm": "norm",
        },
        unfuse_neox,
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"},
            n_inner=48,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        ),
        {**PLAIN, "hidden_act": "gelu_new", "position_embedding_type": "learned", "tie_word_embeddings": True},
        {
            "transformer.": "model.",
            "wte": "embed_tokens",
            "wpe": "embed_positions",
            ".h.": ".layers.",
            "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm",
            "ln_f": "norm",
            "attn.c_proj": "self_attn.o_proj",
            "attn.c_attn": "self_attn.c_attn",
            "mlp.c_fc": "mlp.up_proj",
            "mlp.c_proj": "mlp.down_proj",
        },
        unfuse_gpt2,
    ),
    "bloom": (
        BloomForCausalLM,
        BloomConfig(**{k: v for k, v in SIZES.items() if k not in ("intermediate_size", "max_position_embeddings")}),
        {
            **PLAIN,
            "intermediate_size": 128,
            "hidden_act": "gelu_pytorch_tanh",
            "position_embedding_type": "alibi",
            "embedding_norm": True,
            "tie_word_embeddings": True,
        },
        {
            "transformer.": "model.",
            "word_embeddings_layernorm": "embedding_norm",
            "word_embeddings": "embed_tokens",
            ".h.": ".layers.",
            "self_attention.dense.": "self_attn.o_proj.",
            "self_attention.": "self_attn.",
            "dense_h_to_4h": "up_proj",
            "dense_4h_to_h": "down_proj",
            "ln_f": "norm",
        },
        unfuse_neox,
    ),
}

LATENT = {"kv_lora_rank": 20, "q_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
CASES |= {
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(
            **SIZES,
            **GROUPED,
            num_local_experts=5,
            num_experts_per_tok=2,
            rms_norm_eps=1e-6,
            rope_parameters=default_rope(500.0),
        ),
        {**GROUPED, "num_experts": 5, "num_experts_per_tok": 2, "rope_parameters": default_rope(500.0)},
        {},
        None,
    ),
    "qwen3 moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **SIZES,
            **GROUPED,
            head_dim=16,
            num_local_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            norm_topk_prob=False,
            mlp_only_layers=[0],
            rope_parameters=default_rope(),
        ),
        {
            **GROUPED,
            "head_dim": 16,
            "qk_norm": "head",
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": False,
            "mlp_layer_types": ["dense", "sparse"],
        },
        {},
        None,
    ),
    "deepseek v3": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(
            **SIZES,
            **LATENT,
            num_key_value_heads=4,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_group=1,
            topk_group=1,
            n_shared_experts=2,
            moe_intermediate_size=20,
            first_k_dense_replace=1,
            rope_parameters=default_rope(),
        ),
        {
            **LATENT,
            "attention_type": "latent",
            "rope_interleave": True,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "moe_intermediate_size": 20,
            "router_scores": "sigmoid",
            "routed_scaling_factor": 2.5,
            "router_balance_bias": True,
            "mlp_layer_types": ["dense", "sparse"],
        },
        {},
        None,
    ),
    "diffllama": (
        DiffLlamaForCausalLM,
        DiffLlamaConfig(**SIZES, **GROUPED, head_dim=8, rms_norm_eps=1e-6, rope_parameters=default_rope()),
        {**GROUPED, "attention_type": "differential"},
        {},
        None,
    ),
}


def both(name: str):
    """Their model and ours with the same weights, in eval mode and eager attention."""
    their_class, their_config, options, renames, change = CASES[name]
    torch.manual_seed(0)
    their_config._attn_implementation = "eager"
    theirs = their_class(their_config).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # biases of zero and norms of one would hide what is left out
            torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in theirs.named_buffers():
        if name.endswith("e_score_correction_bias"):  # zero at the start
            torch.nn.init.normal_(buffer, std=0.3)
    rope = {} if "position_embedding_type" in options else {"rope_parameters": default_rope()}
    config = HfxDecoderConfig(**{**SIZES, **rope, **options})
    ours = HfxDecoderForCausalLM._from_config(config, attn_implementation="eager").eval()
    weights = {}
    for key, weight in theirs.state_dict().items():
        for old, new in renames.items():
            key = key.replace(old, new)
        weights[key] = weight
    if change is not None:
        weights = change(weights)
    ours.load_state_dict(weights)  # strict: no weight is left over on either side
    return theirs, ours


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_gradients(name):
    theirs, ours = both(name)
    ids = torch.randint(2, 97, (2, 13), generator=torch.Generator().manual_seed(0))
    results = []
    for model in (theirs, ours):
        out = model(ids, labels=ids)
        out.loss.backward()
        by_size = sorted((p.grad.norm().item() for p in model.parameters() if p.grad is not None), reverse=True)
        results.append((out.logits.detach(), out.loss.item(), model.get_input_embeddings().weight.grad, by_size[0]))
    torch.testing.assert_close(results[1][0], results[0][0], **LOGITS)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-6)
    torch.testing.assert_close(results[1][2], results[0][2], atol=1e-5, rtol=1e-3)
    assert results[0][0].abs().max() > 1  # not logits of nothing


@pytest.mark.parametrize("name", CASES)
def test_same_text(name):
    theirs, ours = both(name)
    ids = torch.randint(2, 97, (2, 6), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
