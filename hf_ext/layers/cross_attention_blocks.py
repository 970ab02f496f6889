"""Blocks of a decoder that reads an encoder: self-attention, cross-attention, feed-forward around the residual stream.

Norm is RMSNorm or LayerNorm, Attn the self-attention, Cross the attention to the encoder's states e, MLP the feed-forward;
dropout acts on what is added to the stream. Names of norms are those of `blocks.py`, with those of Cross between.
"""

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.layers.blocks import TransformerBlock
from hf_ext.layers.cross_attention import CrossAttention
from hf_ext.ops.backends import eager_attention_forward


class CrossAttentionBlock(TransformerBlock):
    """What the blocks here share besides `TransformerBlock`: an attention to the encoder.

    Args:
        attention, feed_forward, norm, dropout: as in `TransformerBlock`.
        cross_attention: between the two.
    """

    def __init__(
        self,
        attention: nn.Module,
        cross_attention: CrossAttention,
        feed_forward: nn.Module,
        norm: Callable[[], nn.Module],
        *,
        dropout: float = 0.0,
    ):
        super().__init__(attention, feed_forward, norm, dropout=dropout)
        self.cross_attn = cross_attention

    def attend(
        self,
        hidden_states: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask=None,
        cross_attention_interface: Callable | None = None,
        past_key_values=None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, d_model): the self-attention's output; of what the block is called with it gets all but the encoder's."""
        own_cache = None if past_key_values is None else past_key_values.self_attention_cache
        return self.self_attn(hidden_states, past_key_values=own_cache, **kwargs)[0]

    def attend_to_encoder(
        self,
        hidden_states: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask=None,
        cross_attention_interface: Callable = eager_attention_forward,
        past_key_values=None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, d_model): the cross-attention's output. The mask, positions and biases in kwargs are the other one's.

        Args:
            hidden_states: (B, T, d_model). encoder_hidden_states: (B, S, d_model).
            encoder_attention_mask, cross_attention_interface: of this attention, see `CrossAttention.forward`.
            past_key_values: an `EncoderDecoderCache`.
        """
        return self.cross_attn(
            hidden_states,
            encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            attention_interface=cross_attention_interface,
        )[0]


class PreNormCrossBlock(CrossAttentionBlock):
    """x = x + Attn(Norm(x));  x = x + Cross(Norm(x), e);  x = x + MLP(Norm(x)).  T5, arXiv 1910.10683, sec. 2.1; mBART."""

    norm_names = ("input_layernorm", "pre_cross_attention_layernorm", "post_attention_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = x + self.dropout(self.attend(self.input_layernorm(x), **kwargs))
        x = x + self.dropout(self.attend_to_encoder(self.pre_cross_attention_layernorm(x), **kwargs))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x


class PostNormCrossBlock(CrossAttentionBlock):
    """x = Norm(x + Attn(x));  x = Norm(x + Cross(x, e));  x = Norm(x + MLP(x)).  arXiv 1706.03762, sec. 3.1; BART."""

    norm_names = ("post_attention_layernorm", "post_cross_attention_layernorm", "post_feedforward_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = self.post_attention_layernorm(x + self.dropout(self.attend(x, **kwargs)))
        x = self.post_cross_attention_layernorm(x + self.dropout(self.attend_to_encoder(x, **kwargs)))
        x = self.post_feedforward_layernorm(x + self.dropout(self.mlp(x)))
        return x


class SandwichNormCrossBlock(CrossAttentionBlock):
    """x = x + Norm(Attn(Norm(x)));  x = x + Norm(Cross(Norm(x), e));  x = x + Norm(MLP(Norm(x)))."""

    norm_names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_cross_attention_layernorm",
        "post_cross_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        attended = self.attend(self.input_layernorm(x), **kwargs)
        x = x + self.dropout(self.post_attention_layernorm(attended))
        attended = self.attend_to_encoder(self.pre_cross_attention_layernorm(x), **kwargs)
        x = x + self.dropout(self.post_cross_attention_layernorm(attended))
        x = x + self.dropout(self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))))
        return x


class ReorderedNormCrossBlock(CrossAttentionBlock):
    """x = x + Norm(Attn(x));  x = x + Norm(Cross(x, e));  x = x + Norm(MLP(x)).  As `ReorderedNormBlock`."""

    norm_names = ("post_attention_layernorm", "post_cross_attention_layernorm", "post_feedforward_layernorm")

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        x = hidden_states
        x = x + self.dropout(self.post_attention_layernorm(self.attend(x, **kwargs)))
        x = x + self.dropout(self.post_cross_attention_layernorm(self.attend_to_encoder(x, **kwargs)))
        x = x + self.dropout(self.post_feedforward_layernorm(self.mlp(x)))
        return x


# by the names of `BLOCKS`; a parallel block with a third sublayer is no one's
CROSS_BLOCKS: dict[str, type[CrossAttentionBlock]] = {
    "pre_norm": PreNormCrossBlock,
    "post_norm": PostNormCrossBlock,
    "sandwich": SandwichNormCrossBlock,
    "reordered_norm": ReorderedNormCrossBlock,
}
