"""From a configuration's fields to the layers that they describe: what all text families make alike."""

from functools import partial

from torch import nn

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import BLOCKS, PostNormBlock
from hf_ext.layers.differential_attention import DifferentialAttention
from hf_ext.layers.feed_forward import FEED_FORWARDS
from hf_ext.layers.latent_attention import LatentAttention
from hf_ext.layers.norms import NORMS, LayerNorm
from hf_ext.layers.positional_encoding import AlibiBias, LearnedPositions, RelativeBias, SinusoidalPositions
from hf_ext.layers.rope import AxialRotaryEmbedding, RotaryEmbedding
from hf_ext.models.configuration_transformer import HfxTransformerConfig


ATTENTIONS = {"multi_head": MultiHeadAttention, "differential": DifferentialAttention, "latent": LatentAttention}


def make_norm(config: HfxTransformerConfig) -> nn.Module:
    """A norm over the residual stream."""
    if config.norm_type == "layernorm":
        return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    return NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)


def make_final_norm(config: HfxTransformerConfig) -> nn.Module:
    """The norm after the last block; nothing where the blocks end in one already."""
    return nn.Identity() if BLOCKS[config.block_type] is PostNormBlock else make_norm(config)


def attention_options(config: HfxTransformerConfig, layer_idx: int) -> dict:
    """What every attention of the config is made with."""
    return {
        "bias": config.attention_bias,
        "output_bias": config.attention_output_bias,
        "norm_eps": config.norm_eps,
        "dropout": config.attention_dropout,
        "scaling": None if config.query_pre_attn_scalar is None else config.query_pre_attn_scalar**-0.5,
        "softcap": config.attn_logit_softcapping,
        "sinks": config.attention_sinks,
        "output_gate": config.attention_output_gate,
        "layer_idx": layer_idx,
    }


def make_attention(
    config: HfxTransformerConfig,
    layer_idx: int,
    layer_type: str,
    *,
    is_causal: bool,
    value_residual: bool | None = None,
) -> MultiHeadAttention:
    """The self-attention of layer `layer_idx`, of the config's type.

    Args:
        layer_type: "full_attention" or "sliding_attention".
        value_residual: default the config's.
    """
    options = attention_options(config, layer_idx) | {
        "is_causal": is_causal,
        "sliding_window": config.sliding_window if layer_type == "sliding_attention" else None,
        "rope_interleave": config.rope_interleave,
    }
    if config.attention_type == "latent":
        options |= {
            "kv_lora_rank": config.kv_lora_rank,
            "q_lora_rank": config.q_lora_rank,
            "qk_nope_head_dim": config.qk_nope_head_dim,
            "qk_rope_head_dim": config.qk_rope_head_dim,
            "v_head_dim": config.v_head_dim,
        }
    else:
        options |= {
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "qk_norm": config.qk_norm,
            "value_residual": config.value_residual if value_residual is None else value_residual,
        }
    attention = ATTENTIONS[config.attention_type](config.hidden_size, config.num_attention_heads, **options)
    attention.config = config  # the layer has no use for it, transformers' flash-attn integration asks for its dtype
    return attention


def make_feed_forward(config: HfxTransformerConfig) -> nn.Module:
    """The dense feed-forward of a layer."""
    return FEED_FORWARDS[config.mlp_type](
        config.hidden_size,
        config.intermediate_size,
        activation=config.hidden_act,
        bias=config.mlp_bias,
        dropout=config.activation_dropout,
    )


def make_embedding_norm(config: HfxTransformerConfig) -> nn.Module:
    """The norm after the embeddings, or nothing."""
    return make_norm(config) if config.embedding_norm else nn.Identity()


def make_position_embeddings(config: HfxTransformerConfig) -> nn.Module | None:
    """Vectors added to the embeddings; None for a scheme that has none."""
    if config.position_embedding_type == "learned":
        return LearnedPositions(config.max_position_embeddings, config.hidden_size)
    if config.position_embedding_type == "sinusoidal":
        return SinusoidalPositions(config.hidden_size, interleaved=config.sinusoidal_interleave)
    return None


def make_rotary_embeddings(config: HfxTransformerConfig) -> nn.ModuleDict:
    """Rotary positions by layer type, along the row or by row and column of a grid; a type without has no positions."""
    rotary_emb = nn.ModuleDict()
    if config.position_embedding_type != "rope":
        return rotary_emb
    make = RotaryEmbedding
    if config.rope_grid_width is not None:
        make = partial(AxialRotaryEmbedding, grid_width=config.rope_grid_width)
    for kind, rope_parameters in config.rope_parameters_by_layer_type().items():
        if rope_parameters is not None:
            rotary_emb[kind] = make(
                config.rotary_dim,
                max_position_embeddings=config.max_position_embeddings,
                interleaved=config.rope_interleave,
                rope_parameters=rope_parameters,
            )
    return rotary_emb


def make_position_bias(config: HfxTransformerConfig, *, is_causal: bool) -> nn.Module | None:
    """The bias on the scores of all layers; None for a scheme that has none."""
    if config.position_embedding_type == "alibi":
        return AlibiBias(config.num_attention_heads, is_causal=is_causal)
    if config.position_embedding_type == "relative":
        return RelativeBias(
            config.num_attention_heads,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
            bidirectional=not is_causal,
        )
    return None
