"""The encoder-decoders that the model tests run over: small, and with weights large enough that attention is far from
uniform. Variants are the decoder's where they apply, and what only this family has."""

import pytest
import torch
from models import decoder_grid

from hf_ext.models import HfxEncoderDecoderConfig, HfxEncoderDecoderForConditionalGeneration


ATTENTIONS = decoder_grid.ATTENTIONS

SIZES = {**decoder_grid.SIZES, "encoder_layers": 3}

SHARED = (
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

VARIANTS = {
    "rope": {},
    **{name: decoder_grid.VARIANTS[name] for name in SHARED},
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

attentions_for = decoder_grid.attentions_for


def one_attention_each() -> list:
    """Parameters (options, attention): all cases with `make test-full`; else one attention a variant, in turn."""
    params = []
    for i, (name, options) in enumerate(VARIANTS.items()):
        able = attentions_for(options)
        for attention in able:
            marks = [] if attention == able[i % len(able)] else [pytest.mark.full]
            params.append(pytest.param(options, attention, id=f"{name} ({attention})", marks=marks))
    return params


def make_config(**options) -> HfxEncoderDecoderConfig:
    return HfxEncoderDecoderConfig(**{**SIZES, **options})


def make_model(
    attention: str | None = None,
    seed: int = 0,
    model_class: type = HfxEncoderDecoderForConditionalGeneration,
    **options,
):
    """A model in eval mode. The same seed gives the same weights whatever the attention."""
    torch.manual_seed(seed)
    config = make_config(**options)
    config._attn_implementation = attention
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):  # zero at the start, where a forgotten one could not be told from a small one
            torch.nn.init.normal_(parameter, std=2.0)
        if name.endswith("value_mix"):
            torch.nn.init.uniform_(parameter, 0.3, 1.0)
        if "lambda_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(B: int = 2, T: int = 13, seed: int = 0) -> torch.Tensor:
    """(B, T) ids without the special ones, in the vocabularies of both sides."""
    return torch.randint(3, 61, (B, T), generator=torch.Generator().manual_seed(seed))


def length_dependent(options: dict) -> bool:
    """Whether rotary frequencies depend on the length; the trained one is 8 in the grid."""
    return (options.get("rope_parameters") or {}).get("rope_type") in ("dynamic", "longrope")
