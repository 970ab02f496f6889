"""Attention of one sequence to another: a decoder's tokens ask, an encoder's answer."""

from collections.abc import Callable

import torch

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.joint_projections import joint_product
from hf_ext.ops.backends import eager_attention_forward


class CrossAttention(MultiHeadAttention):
    """softmax(scaling * Q K^T) V with Q from the decoder, K and V from the encoder; Vaswani et al. 2017, arXiv 1706.03762,
    sec. 3.2.3.

    Every token sees the whole other sequence, and nothing is rotated: positions of two sequences don't compare.

    Args: those of `MultiHeadAttention` but is_causal, sliding_window, rope_interleave and value_residual, which have no
        meaning here.
    """

    same_input = (("k_proj", "v_proj"),)

    def __init__(self, d_model: int, num_heads: int, **options):
        super().__init__(d_model, num_heads, **options, is_causal=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        attention_interface: Callable = eager_attention_forward,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, T, d_model), the decoder's. encoder_hidden_states: (B, S, d_model).
            attention_mask: what `attention_interface` takes; None means all S.
            past_key_values: a transformers `EncoderDecoderCache`; keys and values are computed once and kept there.
            attention_interface: as in `MultiHeadAttention.forward`.

        Returns:
            (B, T, d_model), and the weights (B, H, T, S) where the backend has them.
        """
        query = self._heads(self.q_proj(hidden_states), "q_norm")
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = cached.keys, cached.values
        else:
            key, value = joint_product(encoder_hidden_states, (self.k_proj, self.v_proj))
            key, value = self._heads(key, "k_norm"), self._heads(value)
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        attended, weights = self._attend(query, key, value, attention_mask, attention_interface)
        return self._project_output(attended, hidden_states), weights

    def _heads(self, projected: torch.Tensor, norm: str | None = None) -> torch.Tensor:
        """(B, T, heads * D) -> (B, heads, T, D), normed where the layer norms its queries and keys."""
        norm = getattr(self, norm) if norm is not None and self.qk_norm is not None else None
        if norm is not None and self.qk_norm == "projection":
            projected = norm(projected)
        by_head = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None and self.qk_norm == "head":
            by_head = norm(by_head)
        return by_head.transpose(1, 2)
