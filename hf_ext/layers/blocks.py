"""Transformer blocks: how attention and feed-forward sit around the residual stream. Each forward reads like its equation.

Norm is RMSNorm or LayerNorm, Attn the attention, MLP the feed-forward; dropout acts on what is added to the stream.
The names of the norms are those of transformers' Llama and Gemma2.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_ext.layers.dropout import Dropout


class TransformerBlock(GradientCheckpointingLayer):
    """What all blocks share: an attention, a feed-forward, a dropout.

    Args:
        attention: called as `attention(hidden_states, **kwargs)`, returns (output, weights).
        feed_forward: (B, T, d_model) -> (B, T, d_model).
        norm: makes a new norm over d_model at each call.
        dropout: on each sublayer's output, in training.
    """

    norm_names: tuple[str, ...] = ()

    def __init__(
        self, attention: nn.Module, feed_forward: nn.Module, norm: Callable[[], nn.Module], *, dropout: float = 0.0
    ):
        super().__init__()
        self.self_attn = attention
        self.mlp = feed_forward
        for name in self.norm_names:
            self.add_module(name, norm())
        self.dropout = Dropout(dropout)

    def attend(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.self_attn(hidden_states, **kwargs)[0]


class PreNormBlock(TransformerBlock):
    """x = x + Attn(Norm(x));  x = x + MLP(Norm(x)).  GPT-2, Llama; Xiong et al. 2020, arXiv 2002.04745, fig. 1b."""

    norm_names = ("input_layernorm", "post_attention_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = x + self.dropout(self.attend(self.input_layernorm(x), **kwargs))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x


class PostNormBlock(TransformerBlock):
    """x = Norm(x + Attn(x));  x = Norm(x + MLP(x)).  The 2017 Transformer, BERT; arXiv 1706.03762, sec. 3.1."""

    norm_names = ("post_attention_layernorm", "post_feedforward_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = self.post_attention_layernorm(x + self.dropout(self.attend(x, **kwargs)))
        x = self.post_feedforward_layernorm(x + self.dropout(self.mlp(x)))
        return x


class SandwichNormBlock(TransformerBlock):
    """x = x + Norm(Attn(Norm(x)));  x = x + Norm(MLP(Norm(x))).  Gemma2; Ding et al. 2021, arXiv 2105.13290, sec. 2.3."""

    norm_names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = x + self.dropout(self.post_attention_layernorm(self.attend(self.input_layernorm(x), **kwargs)))
        x = x + self.dropout(self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))))
        return x


class ReorderedNormBlock(TransformerBlock):
    """x = x + Norm(Attn(x));  x = x + Norm(MLP(x)).  OLMo2, arXiv 2501.00656; Liu et al. 2021, arXiv 2111.09883."""

    norm_names = ("post_attention_layernorm", "post_feedforward_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = x + self.dropout(self.post_attention_layernorm(self.attend(x, **kwargs)))
        x = x + self.dropout(self.post_feedforward_layernorm(self.mlp(x)))
        return x


class ParallelBlock(TransformerBlock):
    """x = x + Attn(Norm(x)) + MLP(Norm(x)), one norm for both.  Phi, GPT-J; PaLM, arXiv 2204.02311, sec. 2."""

    norm_names = ("input_layernorm",)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        normed = self.input_layernorm(x)
        return x + self.dropout(self.attend(normed, **kwargs)) + self.dropout(self.mlp(normed))


class ParallelTwoNormsBlock(TransformerBlock):
    """x = x + Attn(Norm(x)) + MLP(Norm'(x)).  GPT-NeoX; Black et al. 2022, arXiv 2204.06745, sec. 2.1."""

    norm_names = ("input_layernorm", "post_attention_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        attended = self.dropout(self.attend(self.input_layernorm(x), **kwargs))
        return x + attended + self.dropout(self.mlp(self.post_attention_layernorm(x)))


BLOCKS: dict[str, type[TransformerBlock]] = {
    "pre_norm": PreNormBlock,
    "post_norm": PostNormBlock,
    "sandwich": SandwichNormBlock,
    "reordered_norm": ReorderedNormBlock,
    "parallel": ParallelBlock,
    "parallel_two_norms": ParallelTwoNormsBlock,
}
