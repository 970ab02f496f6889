"""What a family's tests run over: small configurations, one for each mechanism or wiring, with weights large enough that
attention is far from uniform."""

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

TEXT_VARIANTS = {
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

TEXT_VARIANTS |= {
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
    "sinusoidal positions": {"position_embedding_type": "sinusoidal"},
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

TEXT_VARIANTS |= {
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
}

DECODER_VARIANTS = TEXT_VARIANTS | {
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

ENCODER_VARIANTS = TEXT_VARIANTS | {
    "BERT: segments, learned positions, post-norm, biases": {
        "type_vocab_size": 2,
        "position_embedding_type": "learned",
        "block_type": "post_norm",
        "norm_bias": True,
        "mlp_type": "plain",
        "mlp_bias": True,
        "attention_bias": True,
    },
    "ModernBERT: local and global, no first norm, mean, head on tokens": {
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        "norm_before_first_layer": False,
        "classifier_pooling": "mean",
        "classifier_activation": "gelu",
        "classifier_norm": True,
        "classifier_on_tokens": True,
        "head_bias": False,
    },
    "untied, no norm after the embeddings, softcapped logits": {
        "tie_word_embeddings": False,
        "embedding_norm": False,
        "lm_head_bias": False,
        "final_logit_softcapping": 5.0,
        "value_residual": True,
    },
}

# those of the decoder's that the encoder-decoder is tested on too
_SHARED = (
    "grouped, QK-norm by head",
    "multi-query, post-norm, LayerNorm, GELU, biases",
    "dynamic",
    "longrope",
    "sliding window, reordered norm, biases",
    "local and global, softcaps, unit offset norms, scaled embeddings",
    "attention sinks, sliding window",
    "ALiBi, norm after the embeddings",
    "relative bias, sliding and global",
    "output gate by head, value residual, sliding and global, ReLU²",
    "differential, ALiBi, gated, sliding",
    "latent, sliding and global, sinks, gated",
    "rotary by row and column",
)

ENCODER_DECODER_VARIANTS = {
    "rope": {},
    **{name: DECODER_VARIANTS[name] for name in _SHARED},
    "2017: post-norm, sinusoidal": {
        "block_type": "post_norm",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "hidden_act": "relu",
        "mlp_bias": True,
        "position_embedding_type": "sinusoidal",
        "embedding_multiplier": 32**0.5,
    },
    "BART: learned positions": {
        "block_type": "post_norm",
        "norm_type": "layernorm",
        "position_embedding_type": "learned",
        "embedding_norm": True,
        "lm_head_bias": True,
        "decoder_start_token_id": 1,
    },
    "T5: relative, scaled output, untied": {
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "query_pre_attn_scalar": 1,
        "output_multiplier": 0.3,
        "tie_word_embeddings": False,
    },
    "two vocabularies": {"encoder_vocab_size": 61, "share_embeddings": False, "encoder_layers": 1},
    "one vocabulary, embeddings apart, QK-norm by projection, sandwich": {
        "share_embeddings": False,
        "qk_norm": "projection",
        "block_type": "sandwich",
    },
    "encoder local, decoder global": {
        "sliding_window": 3,
        "layer_types": ["full_attention"] * 2,
        "encoder_layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
