"""The decoders that the model tests run over: small, and with weights large enough that attention is far from uniform."""

import pytest
import torch

from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

VARIANTS = {
    "llama": {},
    "grouped, QK-norm by head": {"num_key_value_heads": 2, "qk_norm": "head", "head_dim": 16},
    "multi-query, post-norm, LayerNorm, GELU, biases": {
        "num_key_value_heads": 1,
        "block_type": "post_norm",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "sandwich, GeGLU, QK-norm by projection, softcap, tied": {
        "block_type": "sandwich",
        "hidden_act": "gelu_pytorch_tanh",
        "qk_norm": "projection",
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "parallel, ReLU², interleaved partial rotary": {
        "block_type": "parallel",
        "mlp_type": "plain",
        "hidden_act": "relu2",
        "rope_interleave": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    "no positions, LayerNorm without bias": {
        "position_embedding_type": "none",
        "norm_type": "layernorm",
        "norm_bias": False,
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {"max_position_embeddings": 8, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn": {
        "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
    },
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "factor": 8.0,
            "original_max_position_embeddings": 8,
            "short_factor": [1.0, 1.1, 1.3, 1.7],
            "long_factor": [1.0, 2.0, 4.0, 7.0],
        },
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
    "proportional": {
        "rope_parameters": {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    },
}

VARIANTS |= {
    "sliding window, reordered norm, biases": {
        "sliding_window": 4,
        "block_type": "reordered_norm",
        "qk_norm": "projection",
        "attention_bias": True,
        "attention_output_bias": False,
        "lm_head_bias": True,
    },
    "local and global, softcaps, unit offset norms, scaled embeddings": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "block_type": "sandwich",
        "norm_type": "rmsnorm_unit_offset",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 20,
        "embedding_multiplier": 32**0.5,
        "num_key_value_heads": 2,
    },
    "rotary by layer type, none in the global layers, two parallel norms": {
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
        "block_type": "parallel_two_norms",
    },
    "attention sinks, sliding window": {
        "attention_sinks": True,
        "num_key_value_heads": 2,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "learned positions": {"position_embedding_type": "learned", "norm_type": "layernorm"},
    "sinusoidal positions": {"position_embedding_type": "sinusoidal", "hidden_dropout": 0.0},
    "ALiBi, norm after the embeddings": {
        "position_embedding_type": "alibi",
        "embedding_norm": True,
        "num_key_value_heads": 2,
    },
    "relative bias, sliding and global": {
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}

VARIANTS |= {
    "output gate by dim, value residual": {
        "attention_output_gate": "elementwise",
        "value_residual": True,
        "num_key_value_heads": 2,
        "qk_norm": "head",
    },
    "output gate by head, value residual, sliding and global, ReLU²": {
        "attention_output_gate": "headwise",
        "value_residual": True,
        "mlp_type": "plain",
        "hidden_act": "relu2",
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "differential": {"attention_type": "differential", "num_key_value_heads": 2},
    "differential, ALiBi, gated, sliding": {
        "attention_type": "differential",
        "position_embedding_type": "alibi",
        "attention_output_gate": "headwise",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "latent, queries too, interleaved": {
        "attention_type": "latent",
        "q_lora_rank": 12,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "rope_interleave": True,
    },
    "latent, sliding and global, sinks, gated": {
        "attention_type": "latent",
        "attention_sinks": True,
        "attention_output_gate": "elementwise",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "latent, relative bias, softcap, sandwich": {
        "attention_type": "latent",
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "attn_logit_softcapping": 2.0,
        "block_type": "sandwich",
    },
    "rotary by row and column": {"rope_grid_width": 4},
    "mixture of experts": {"num_experts": 5, "num_key_value_heads": 2, "router_z_loss_coef": 0.1},
    "shared experts, sigmoid scores, balance bias, first layer dense": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "num_shared_experts": 2,
        "router_scores": "sigmoid",
        "routed_scaling_factor": 2.5,
        "router_balance_bias": True,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "plain experts, not normalized, parallel": {
        "num_experts": 4,
        "norm_topk_prob": False,
        "mlp_type": "plain",
        "hidden_act": "gelu",
        "block_type": "parallel",
    },
    "two further tokens predicted": {"num_nextn_predict_layers": 2, "value_residual": True},
}

ATTENTIONS = ("eager", "sdpa", "hfx_tiled")


def attentions_for(options: dict) -> tuple[str, ...]:
    """The implementations that can compute a variant; that the others refuse is tested with the nonsense."""
    beyond_sdpa = {"attn_logit_softcapping", "attention_sinks"} & set(options)
    return tuple(a for a in ATTENTIONS if a != "sdpa" or not beyond_sdpa)


CASES = {f"{name} ({a})": (options, a) for name, options in VARIANTS.items() for a in attentions_for(options)}


def one_attention_each(cases: dict) -> list:
    """Parameters (options, attention): all `cases` with `make test-full`; else one attention a variant, in turn."""
    plain = {
        f"{name} ({able[i % len(able)]})"
        for i, (name, able) in enumerate((name, attentions_for(options)) for name, options in VARIANTS.items())
    }
    return [
        pytest.param(*case, id=name, marks=[] if name in plain else [pytest.mark.full]) for name, case in cases.items()
    ]


def make_config(**options) -> HfxDecoderConfig:
    return HfxDecoderConfig(**{**SIZES, **options})


def make_model(attention: str | None = None, seed: int = 0, **options) -> HfxDecoderForCausalLM:
    """A model in eval mode. The same seed gives the same weights whatever the attention."""
    torch.manual_seed(seed)
    config = make_config(**options)
    config._attn_implementation = attention
    model = HfxDecoderForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):  # zero at the start, where a forgotten one could not be told from a small one
            torch.nn.init.normal_(parameter, std=2.0)
        if name.endswith("value_mix"):
            torch.nn.init.uniform_(parameter, 0.3, 1.0)
        if "lambda_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(B: int = 2, T: int = 13, seed: int = 0) -> torch.Tensor:
    """(B, T) ids without the special ones."""
    return torch.randint(3, SIZES["vocab_size"], (B, T), generator=torch.Generator().manual_seed(seed))
