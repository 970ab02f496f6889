"""Differential attention against its equation, written out a pair of heads at a time."""

import pytest
import torch

from hf_ext.layers import DifferentialAttention


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
def test_is_the_equation(num_key_value_heads):
    torch.manual_seed(0)
    H, K, D, d, T = 4, num_key_value_heads, 6, 24, 5
    attention = DifferentialAttention(d, H, num_key_value_heads=K, layer_idx=2, norm_eps=1e-5)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, T, d)
    query, key, value = (m(x)[0].view(T, -1, D) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    exp = torch.exp
    lambda_init = 0.8 - 0.6 * float(exp(torch.tensor(-0.3 * 2)))  # third layer
    weight = (
        exp(attention.lambda_q1 @ attention.lambda_k1) - exp(attention.lambda_q2 @ attention.lambda_k2) + lambda_init
    )
    heads = []
    for head in range(H // 2):
        group = head // (H // K)
        maps = []
        for q, k in ((head, group), (head + H // 2, group + K // 2)):
            scores = query[:, q] @ key[:, k].T * D**-0.5
            maps.append(scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(-1))
        values = torch.cat((value[:, group], value[:, group + K // 2]), dim=-1)
        found = (maps[0] - weight * maps[1]) @ values
        heads.append((1 - lambda_init) * found * torch.rsqrt(found.square().mean(-1, keepdim=True) + 1e-5))
    expected = attention.o_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x)[0][0], expected, atol=1e-5, rtol=1e-5)


def test_equal_maps_cancel_but_for_lambda():
    """With lambda 1 and the same two maps nothing is left."""
    attention = DifferentialAttention(16, 4, layer_idx=0)
    for matrix in (attention.q_proj, attention.k_proj):
        matrix.weight.data[8:] = matrix.weight.data[:8]
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        getattr(attention, name).data.zero_()
    attention.lambda_init = 1.0
    assert float(attention(torch.randn(1, 5, 16))[0].detach().abs().max()) < 1e-6


def test_heads_come_in_pairs():
    with pytest.raises(ValueError, match="num_key_value_heads=1: differential attention takes heads in pairs"):
        DifferentialAttention(16, 4, num_key_value_heads=1)
