"""The parts: modules with explicit arguments, from which each model family is assembled."""

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import (
    BLOCKS,
    ParallelBlock,
    ParallelTwoNormsBlock,
    PostNormBlock,
    PreNormBlock,
    ReorderedNormBlock,
    SandwichNormBlock,
)
from hf_ext.layers.differential_attention import DifferentialAttention
from hf_ext.layers.feed_forward import ACTIVATIONS, FEED_FORWARDS, FeedForward, GatedFeedForward
from hf_ext.layers.flash_attention_layer import FlashAttention
from hf_ext.layers.latent_attention import LatentAttention
from hf_ext.layers.mixture_of_experts import MixtureOfExperts
from hf_ext.layers.norms import NORMS, LayerNorm, RMSNorm, UnitOffsetRMSNorm
from hf_ext.layers.positional_encoding import AlibiBias, LearnedPositions, RelativeBias, SinusoidalPositions
from hf_ext.layers.rope import AxialRotaryEmbedding, RoPE, RotaryEmbedding


__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "FEED_FORWARDS",
    "NORMS",
    "AlibiBias",
    "AxialRotaryEmbedding",
    "DifferentialAttention",
    "FeedForward",
    "FlashAttention",
    "GatedFeedForward",
    "LatentAttention",
    "LayerNorm",
    "LearnedPositions",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "ParallelBlock",
    "ParallelTwoNormsBlock",
    "PostNormBlock",
    "PreNormBlock",
    "RMSNorm",
    "RelativeBias",
    "ReorderedNormBlock",
    "RoPE",
    "RotaryEmbedding",
    "SandwichNormBlock",
    "SinusoidalPositions",
    "UnitOffsetRMSNorm",
]
