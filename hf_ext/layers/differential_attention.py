"""Differential attention: each head is the difference of two attention maps, so that what both see as noise cancels.

    DiffAttn(x) = (softmax(Q1 K1^T) - lambda * softmax(Q2 K2^T)) V          Ye et al. 2024, arXiv 2410.05258, eq. 1
    lambda      = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init             eq. 2
    head        = (1 - lambda_init) * RMSNorm(DiffAttn(x))                  eq. 3

The H query and K key heads are H / 2 and K / 2 pairs: head i of the first half with head i of the second. A pair's value
are the two value heads side by side, 2 D dims.
"""

import math

import torch
from torch import nn

from hf_ext.layers.attention import MultiHeadAttention, output_gate_projection


LAMBDA_VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
LAMBDA_STD = 0.1  # at the start; the paper's code


class DifferentialAttention(MultiHeadAttention):
    """Args: those of `MultiHeadAttention`. Its parameters are as many, but for the four vectors of lambda.

    lambda_init, 0.8 - 0.6 exp(-0.3 layer_idx), grows with the depth (sec. 2.1).
    """

    def __init__(
        self, d_model: int, num_heads: int, *, norm_eps: float = 1e-6, output_gate: str | None = None, **kwargs
    ):
        super().__init__(d_model, num_heads, norm_eps=norm_eps, **kwargs)
        check_pairs(num_heads, kwargs.get("num_key_value_heads") or num_heads)
        self.norm_eps = norm_eps
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * (self.layer_idx or 0))
        self.gate_proj = output_gate_projection(output_gate, d_model, num_heads // 2, 2 * self.head_dim)
        for name in LAMBDA_VECTORS:
            self.register_parameter(name, nn.Parameter(torch.empty(self.head_dim).normal_(std=LAMBDA_STD)))

    def _attend(self, query, key, value, attention_mask, attention_interface, **kwargs):
        """(B, T, H / 2, 2 D); the weights are those of all H maps, before the difference."""
        first, second = value.chunk(2, dim=1)
        value = torch.cat((first, second), dim=-1).repeat(1, 2, 1, 1)  # (B, K, S, 2 D)
        attended, weights = super()._attend(query, key, value, attention_mask, attention_interface, **kwargs)
        first, second = attended.chunk(2, dim=2)
        difference = first - self.weight_of_second().to(first.dtype) * second
        normed = nn.functional.rms_norm(difference, difference.shape[-1:], eps=self.norm_eps)
        return (1 - self.lambda_init) * normed, weights

    def weight_of_second(self) -> torch.Tensor:
        """lambda, 0-d fp32."""
        first = torch.exp((self.lambda_q1.float() * self.lambda_k1.float()).sum())
        second = torch.exp((self.lambda_q2.float() * self.lambda_k2.float()).sum())
        return first - second + self.lambda_init


def check_pairs(num_heads: int, num_key_value_heads: int) -> None:
    """Raises ValueError for heads that don't come in pairs."""
    for name, heads in (("num_attention_heads", num_heads), ("num_key_value_heads", num_key_value_heads)):
        if heads % 2:
            raise ValueError(f"{name}={heads}: differential attention takes heads in pairs; use an even number")
