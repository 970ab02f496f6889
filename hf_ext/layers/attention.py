"""Multi-head attention with grouped key/value heads, QK-norm, rotary positions and a cache.

B batch, H query heads, K key/value heads, T queries, S keys, D head dim.
Its relatives: `latent_attention.py` (a compressed cache) and `differential_attention.py` (the difference of two maps).
"""

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.layers.joint_projections import joint_product
from hf_ext.layers.linear import Linear
from hf_ext.layers.norms import RMSNorm
from hf_ext.layers.rope import Rotation
from hf_ext.ops.backends import eager_attention_forward


QK_NORMS = ("head", "projection")
OUTPUT_GATES = ("elementwise", "headwise")


class MultiHeadAttention(nn.Module):
    """Self-attention: softmax(scaling * Q K^T) V by head; Vaswani et al. 2017, arXiv 1706.03762, sec. 3.2.2.

    Fewer key/value heads than query heads make it grouped-query (Ainslie et al. 2023, arXiv 2305.13245), one alone
    multi-query attention (Shazeer 2019, arXiv 1911.02150).

    Args:
        d_model: size of the input and output.
        num_heads: H. num_key_value_heads: K, divides H; default H.
        head_dim: D; default d_model / num_heads.
        bias: whether the query, key and value matrices have one. output_bias: the output matrix; default as they.
        qk_norm: None, "head" (RMSNorm over each head's D, as in Qwen3) or "projection" (over all heads' H * D before
            they are split, as in OLMo2); Henry et al. 2020, arXiv 2010.04245. Applied before the rotation.
        norm_eps: of that norm.
        dropout: on the weights, in training.
        scaling: on the scores; default D ** -0.5. softcap: bound on the absolute scores.
        sinks: a learnt score for each head that takes weight without giving a value (Xiao et al. 2023, arXiv 2309.17453).
        output_gate: None, or what each head gives is multiplied by sigmoid(W x), "elementwise" (a number for each dim) or
            "headwise" (one for each head); Qiu et al. 2025, arXiv 2505.06708.
        value_residual: layers after the first mix their values with the first layer's, l1 * V + l2 * V_first, l1 and l2
            learnt and 1/2 at the start; Zhou et al. 2024, arXiv 2410.17897.
        is_causal: whether a token sees only itself and what came before, where no mask says so.
        sliding_window: tokens that a query sees, itself included; default all before it.
        layer_idx: which layer of the cache is this one's.
        rope_interleave: rotate neighbouring dims instead of halves.
    """

    same_input = (("q_proj", "k_proj", "v_proj"),)  # see `joint_projections.py`

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        output_bias: bool | None = None,
        qk_norm: str | None = None,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        scaling: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        output_gate: str | None = None,
        value_residual: bool = False,
        is_causal: bool = True,
        sliding_window: int | None = None,
        layer_idx: int | None = None,
        rope_interleave: bool = False,
    ):
        super().__init__()
        num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        check_heads(d_model, num_heads, num_key_value_heads, head_dim)
        self.head_dim = d_model // num_heads if head_dim is None else head_dim
        self.num_key_value_groups = num_heads // num_key_value_heads
        self.scaling = self.head_dim**-0.5 if scaling is None else scaling
        self.attention_dropout = dropout
        self.softcap = softcap
        self.is_causal = is_causal
        self.sliding_window = sliding_window
        self.layer_idx = layer_idx
        self.rotation = Rotation(interleaved=rope_interleave)

        self.q_proj = Linear(d_model, num_heads * self.head_dim, bias=bias)
        self.k_proj = Linear(d_model, num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(d_model, num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = Linear(num_heads * self.head_dim, d_model, bias=bias if output_bias is None else output_bias)
        self.o_proj.is_residual_output = True  # read where weights are initialised
        if sinks:  # else no attribute at all: transformers' paged attention takes whatever has the name for a tensor
            self.sinks = nn.Parameter(torch.zeros(num_heads))
        self.gate_proj = output_gate_projection(output_gate, d_model, num_heads, self.head_dim)
        self.value_residual = value_residual
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if value_residual and layer_idx else None
        self.qk_norm = qk_norm
        if qk_norm is not None:
            if qk_norm not in QK_NORMS:
                raise ValueError(f"qk_norm={qk_norm!r}: must be None or one of {', '.join(QK_NORMS)}")
            heads = (1, 1) if qk_norm == "head" else (num_heads, num_key_value_heads)
            self.q_norm = RMSNorm(heads[0] * self.head_dim, eps=norm_eps)
            self.k_norm = RMSNorm(heads[1] * self.head_dim, eps=norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask=None,
        past_key_values=None,
        attention_interface: Callable = eager_attention_forward,
        first_values: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, T, d_model).
            position_embeddings: cos and sin of the rotation, (B, T, R) each; None rotates nothing.
            attention_mask: what `attention_interface` takes; None means causal if `is_causal`, else everything.
            past_key_values: a transformers `Cache`, extended in place.
            attention_interface: `attend(module, query, key, value, mask, scaling=…, dropout=…, **kwargs)`.
            first_values: with `value_residual`, a list that is empty at the start of the model's forward pass: the first
                layer puts its values into it, the others read them.

        Returns:
            (B, T, d_model), and the weights (B, H, T, S) where the backend has them.
        """
        query, key, value = self._project(hidden_states)
        if self.value_residual:
            value = self._mix_values(value, first_values)
        if position_embeddings is not None:
            query, key = self.rotation(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attended, weights = self._attend(query, key, value, attention_mask, attention_interface, **kwargs)
        return self._project_output(attended, hidden_states), weights

    def _attend(self, query, key, value, attention_mask, attention_interface: Callable, **kwargs):
        """The backend's attention with this layer's options: (B, T, H, Dv) and weights, or None."""
        for name in ("softcap", "sliding_window"):  # given only where there is one: not every backend knows them
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        if hasattr(self, "sinks"):
            kwargs["s_aux"] = self.sinks
        dropout = self.attention_dropout if self.training else 0.0
        return attention_interface(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )

    def _project_output(self, attended: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the heads found (B, T, H, Dv) -> (B, T, d_model)."""
        if self.gate_proj is not None:
            gate = torch.sigmoid(self.gate_proj(hidden_states))
            attended = attended * gate.unflatten(-1, (attended.shape[2], -1))
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1).contiguous())

    def _mix_values(self, value: torch.Tensor, first_values: list[torch.Tensor] | None) -> torch.Tensor:
        if first_values is None:
            raise ValueError(
                "first_values: value_residual needs a list that goes through all layers; pass an empty one"
            )
        if self.value_mix is None:
            first_values[:] = [value]  # set, not appended: checkpointing runs this layer a second time
            return value
        own, first = self.value_mix
        return own * value + first * first_values[0]

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, d_model) -> query (B, H, T, D), key and value (B, K, T, D)."""
        query, key, value = joint_product(hidden_states, (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm == "projection":
            query, key = self.q_norm(query), self.k_norm(key)
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = query.view(by_head), key.view(by_head), value.view(by_head)
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def output_gate_projection(kind: str | None, d_model: int, num_heads: int, head_dim: int) -> Linear | None:
    """The matrix of an output gate over heads of `head_dim`; None without one."""
    if kind is None:
        return None
    if kind not in OUTPUT_GATES:
        raise ValueError(f"output_gate={kind!r}: must be None or one of {', '.join(OUTPUT_GATES)}")
    return Linear(d_model, num_heads * (head_dim if kind == "elementwise" else 1), bias=False)


def check_heads(d_model: int, num_heads: int, num_key_value_heads: int, head_dim: int | None) -> None:
    """Raises ValueError, one line, for sizes that can't be split into heads."""
    sizes = {"hidden_size": d_model, "num_attention_heads": num_heads, "num_key_value_heads": num_key_value_heads}
    for name, size in {**sizes, **({} if head_dim is None else {"head_dim": head_dim})}.items():
        if size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")
    if head_dim is None and d_model % num_heads:
        raise ValueError(
            f"num_attention_heads={num_heads}: must divide hidden_size={d_model}; change one of them or set head_dim"
        )
    if num_heads % num_key_value_heads:
        raise ValueError(
            f"num_key_value_heads={num_key_value_heads}: must divide num_attention_heads={num_heads}; "
            "use 1 for multi-query attention or the same number for full attention"
        )
