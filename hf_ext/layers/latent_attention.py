"""Multi-head latent attention: keys and values of all heads are read off one small vector a token, which is what is cached.

    c    = RMSNorm(W_DKV x)                 the latent, kv_lora_rank numbers     DeepSeek-V2, arXiv 2405.04434, eq. 9
    k_R  = RoPE(W_KR x)                     one rotated key for all heads        eq. 15
    k    = [W_UK c; k_R],  v = W_UV c       by head                              eq. 10, 11, 17
    q    = [W_UQ x; RoPE(W_QR x)]           or from a latent of its own          eq. 12, 13, 14, 16

The cache holds c and k_R alone: kv_lora_rank + qk_rope_head_dim numbers a token, whatever the number of heads. For a single
new token W_UK moves into the query and W_UV behind the sum, so that the cached latents are attended to as they are:
q^T (W_UK c) = (W_UK^T q)^T c (sec. 2.1.2).

B batch, H heads, T queries, S keys; dims: N qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim, L kv_lora_rank.
"""

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.layers.attention import MultiHeadAttention, output_gate_projection
from hf_ext.layers.joint_projections import joint_product
from hf_ext.layers.linear import Linear
from hf_ext.layers.norms import RMSNorm
from hf_ext.layers.plain_linear import why_not_plain
from hf_ext.layers.rope import Rotation
from hf_ext.ops.backends import eager_attention_forward
from hf_ext.ops.mask_rule import MaskRule


class LatentAttention(MultiHeadAttention):
    """Causal self-attention over latents; parameters are named as in transformers' DeepSeek-V3.

    Args:
        d_model, num_heads, dropout, scaling, softcap, sinks, output_gate, is_causal, sliding_window, layer_idx,
            rope_interleave: as in `MultiHeadAttention`; scaling defaults to (N + R) ** -0.5.
        kv_lora_rank: L. q_lora_rank: size of the queries' latent; None makes them from the input.
        qk_nope_head_dim: N, dims of a head's query and key without rotation. qk_rope_head_dim: R, those with.
        v_head_dim: V.
        bias: of the matrices that read the residual stream; output_bias: of the one that writes it, default `bias`.
        norm_eps: of the latents' norms.
    """

    same_input = (
        ("q_proj", "kv_a_proj_with_mqa"),
        ("q_a_proj", "kv_a_proj_with_mqa"),
    )  # the first or the second is there

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None = None,
        bias: bool = False,
        output_bias: bool | None = None,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        scaling: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        output_gate: str | None = None,
        is_causal: bool = True,
        sliding_window: int | None = None,
        layer_idx: int | None = None,
        rope_interleave: bool = False,
    ):
        nn.Module.__init__(self)  # none of the parent's matrices is this layer's
        self.num_heads = num_heads
        self.head_dims = (qk_nope_head_dim, qk_rope_head_dim, v_head_dim)
        self.head_dim = qk_nope_head_dim + qk_rope_head_dim
        self.num_key_value_groups = 1
        self.kv_lora_rank = kv_lora_rank
        self.scaling = self.head_dim**-0.5 if scaling is None else scaling
        self.attention_dropout = dropout
        self.softcap = softcap
        self.is_causal = is_causal
        self.sliding_window = sliding_window
        self.layer_idx = layer_idx
        self.rotation = Rotation(interleaved=rope_interleave)
        self.value_mix = None

        if q_lora_rank is None:
            self.q_proj = Linear(d_model, num_heads * self.head_dim, bias=False)
        else:
            self.q_a_proj = Linear(d_model, q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(q_lora_rank, eps=norm_eps)
            self.q_b_proj = Linear(q_lora_rank, num_heads * self.head_dim, bias=False)
        self.q_lora_rank = q_lora_rank
        self.kv_a_proj_with_mqa = Linear(d_model, kv_lora_rank + qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, eps=norm_eps)
        self.kv_b_proj = Linear(kv_lora_rank, num_heads * (qk_nope_head_dim + v_head_dim), bias=False)
        self.o_proj = Linear(num_heads * v_head_dim, d_model, bias=bias if output_bias is None else output_bias)
        if sinks:
            self.sinks = nn.Parameter(torch.zeros(num_heads))
        self.o_proj.is_residual_output = True
        self.gate_proj = output_gate_projection(output_gate, d_model, num_heads, v_head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask=None,
        past_key_values=None,
        attention_interface: Callable = eager_attention_forward,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `MultiHeadAttention.forward`."""
        query, latent, rotated_key = self._project(hidden_states)
        straight, turned = query.split(self.head_dims[:2], dim=-1)
        if position_embeddings is not None:
            turned, rotated_key = self.rotation(turned, rotated_key, *position_embeddings)
        if past_key_values is not None:
            latent, rotated_key = past_key_values.update(latent, rotated_key, self.layer_idx)

        # one query needs no tiles: the reference attends to the latents, in whatever form it is given the mask
        one_query = past_key_values is not None and query.shape[2] == 1
        readable = attention_mask is None or isinstance(attention_mask, (MaskRule, torch.Tensor))
        if one_query and readable and getattr(attention_mask, "ndim", 4) == 4 and not why_not_plain(self.kv_b_proj):
            attended, weights = self._attend_to_latents(straight, turned, latent, rotated_key, attention_mask, **kwargs)
        else:
            key, value = self._expand(latent, rotated_key)
            query = torch.cat((straight, turned), dim=-1)
            attended, weights = self._attend(query, key, value, attention_mask, attention_interface, **kwargs)
        return self._project_output(attended, hidden_states), weights

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, d_model) -> query (B, H, T, N + R), latent (B, 1, T, L), the heads' common key (B, 1, T, R)."""
        reads_query = self.q_proj if self.q_lora_rank is None else self.q_a_proj
        query, latents = joint_product(hidden_states, (reads_query, self.kv_a_proj_with_mqa))
        if self.q_lora_rank is not None:
            query = self.q_b_proj(self.q_a_layernorm(query))
        query = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        latent, key = latents.split((self.kv_lora_rank, self.head_dims[1]), dim=-1)
        return query, self.kv_a_layernorm(latent).unsqueeze(1), key.unsqueeze(1)

    def _expand(self, latent: torch.Tensor, rotated_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key (B, H, S, N + R) and value (B, H, S, V) of every head."""
        N, _, V = self.head_dims
        key, value = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (-1, N + V)).transpose(1, 2).split((N, V), dim=-1)
        return torch.cat((key, rotated_key.expand(-1, key.shape[1], -1, -1)), dim=-1), value

    def _attend_to_latents(self, straight, turned, latent, rotated_key, attention_mask, **kwargs):
        """(B, 1, H, V) and weights: all heads share the latents as their one key and value."""
        N, _, V = self.head_dims
        up_key, up_value = self.kv_b_proj.weight.unflatten(0, (-1, N + V)).split((N, V), dim=1)  # (H, N, L), (H, V, L)
        query = torch.cat((straight @ up_key, turned), dim=-1)  # (B, H, 1, L + R)
        key = torch.cat((latent, rotated_key), dim=-1)
        attended, weights = self._attend(query, key, latent, attention_mask, eager_attention_forward, **kwargs)
        return (attended.transpose(1, 2) @ up_value.transpose(1, 2)).transpose(1, 2), weights
