"""FlashAttention equals torch's scaled_dot_product_attention, forward and backward, in every layout that it takes."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_ext.layers import FlashAttention, MultiHeadAttention, RoPE


# fp32 sums over up to 301 keys in another order
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def states(T=67, S=None, H=4, K=None, D=16, B=2, seed=0) -> list[torch.Tensor]:
    """query (B, T, H, D), key and value (B, S, K, D), leaves."""
    torch.manual_seed(seed)
    S, K = S or T, K or H
    return [torch.randn(B, n, h, D, requires_grad=True) for n, h in ((T, H), (S, K), (S, K))]


def expected(query, key, value, visible=None, **options) -> torch.Tensor:
    """torch's own; `visible` is bool, (T, S) or (B, 1, T, S)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, **options).transpose(1, 2)


def assert_same(found, wanted, inputs) -> None:
    """The outputs, and the gradients of a random projection of each."""
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    direction = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(x, inputs, direction, retain_graph=True) for x in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_textbook_lines():
    attention, flash, rope = (
        MultiHeadAttention(d_model=512, num_heads=8),
        FlashAttention(softmax_scale=1.0),
        RoPE(dim=512, max_position_embeddings=2048),
    )
    hidden_states = torch.randn(1, 5, 512)
    assert attention(hidden_states)[0].shape == (1, 5, 512)
    query, key, value = states(5)
    wanted = expected(query, key, value, scale=1.0)
    assert_same(flash(query, key, value), wanted, (query, key, value))
    assert [x.shape for x in rope(torch.arange(5)[None])] == [(1, 5, 512)] * 2
    assert repr(flash) == (
        "FlashAttention(softmax_scale=1.0, attention_dropout=0.0, causal=False, window_size=(-1, -1), softcap=None)"
    )


@pytest.mark.parametrize("T", [1, 67, 301])
@pytest.mark.parametrize("K", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_same_as_torch(T, K, causal):
    inputs = states(T, K=K)
    wanted = expected(*inputs, is_causal=causal)
    assert_same(FlashAttention(causal=causal)(*inputs), wanted, inputs)
    assert_same(FlashAttention(causal=not causal)(*inputs, causal=causal), wanted, inputs)


def test_packed_is_the_same():
    query, key, value = states()
    packed = torch.stack((query, key, value), dim=2)
    assert torch.equal(FlashAttention(causal=True)(packed), FlashAttention(causal=True)(query, key, value))


def test_value_of_another_head_dim():
    query, key, _ = states()
    value = torch.randn(2, 67, 4, 9)
    torch.testing.assert_close(FlashAttention()(query, key, value), expected(query, key, value), **TOLERANCE)


@pytest.mark.parametrize(("T", "S"), [(5, 67), (1, 67), (67, 5)])
def test_queries_and_keys_end_together(T, S):
    inputs = states(T, S)
    visible = torch.arange(S) <= torch.arange(T)[:, None] + S - T
    wanted = expected(*inputs, visible=visible)  # zeros where a row sees nothing, and no gradient, in torch too
    assert_same(FlashAttention(causal=True)(*inputs), wanted, inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window_size", [(7, 0), (7, 3), (-1, 2), (0, -1)])
@pytest.mark.parametrize("S", [67, 71])
def test_window(causal, window_size, S):
    inputs = states(67, S)
    distance = torch.arange(S) - (torch.arange(67)[:, None] + S - 67)
    before, after = window_size
    visible = (distance >= -before) if before >= 0 else torch.ones_like(distance, dtype=torch.bool)
    if causal or after >= 0:
        visible = visible & (distance <= (0 if causal else after))
    wanted = expected(*inputs, visible=visible)
    assert_same(FlashAttention(causal=causal, window_size=window_size)(*inputs), wanted, inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(causal, side):
    inputs = states()
    padding = torch.ones(2, 67, dtype=torch.long)
    padding[0, slice(0, 11) if side == "left" else slice(56, 67)] = 0
    visible = padding.bool()[:, None, None].expand(2, 1, 67, 67)
    if causal:
        visible = visible & torch.ones(67, 67, dtype=torch.bool).tril()
    wanted = expected(*inputs, visible=visible)
    assert_same(FlashAttention(causal=causal)(*inputs, key_padding_mask=padding), wanted, inputs)

    packed = FlashAttention(causal=causal)(torch.stack(inputs, dim=2), key_padding_mask=padding.bool())
    wanted = wanted * padding[:, :, None, None]  # the same tokens are queries, and padding is nobody's query
    assert_same(packed, wanted, inputs)
    row = slice(11, 67) if side == "left" else slice(0, 56)
    alone = FlashAttention(causal=causal)(*(x[:1, row] for x in inputs))
    torch.testing.assert_close(packed[:1, row], alone, **TOLERANCE)


def test_padding_on_the_left_with_fewer_queries():
    inputs = states(3, 20)
    padding = torch.ones(2, 20, dtype=torch.bool)
    padding[1, :6] = False
    found = FlashAttention(causal=True)(*inputs, key_padding_mask=padding)
    alone = FlashAttention(causal=True)(inputs[0][1:], inputs[1][1:, 6:], inputs[2][1:, 6:])
    torch.testing.assert_close(found[1:], alone, **TOLERANCE)


LENGTHS = ([3, 1, 40, 23], [0, 300, 1])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window_size", [(-1, -1), (4, 1)])
def test_documents_in_a_row_are_the_documents_alone(lengths, causal, window_size):
    attention = FlashAttention(causal=causal, window_size=window_size)
    inputs = [x[0] for x in states(sum(lengths), K=2)]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    together = attention(*inputs, cu_seqlens=starts.int())
    alone = [attention(*(x[None, a:b] for x in inputs))[0] for a, b in pairwise(starts) if a < b]
    assert_same(together, torch.cat(alone), inputs)
    packed = attention(torch.stack([x.repeat_interleave(4 // x.shape[1], 1) for x in inputs], 1), cu_seqlens=starts)
    assert_same(packed, together, inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_documents_with_keys_of_their_own(causal):
    attention = FlashAttention(causal=causal)
    query, key, value = inputs = [x[0] for x in states(30, 45)]
    starts, key_starts = torch.tensor([0, 2, 13, 30]), torch.tensor([0, 9, 25, 45])
    together = attention(*inputs, cu_seqlens=starts, cu_seqlens_k=key_starts)
    alone = [
        attention(query[None, a:b], key[None, c:d], value[None, c:d])[0]
        for (a, b), (c, d) in zip(pairwise(starts), pairwise(key_starts), strict=True)
    ]
    assert_same(together, torch.cat(alone), inputs)


def test_softcap_bounds_the_scores():
    query, key, value = states()
    scores = torch.einsum("bthd,bshd->bhts", query, key) / 4
    weights = (2.0 * torch.tanh(scores / 2.0)).softmax(-1)
    wanted = torch.einsum("bhts,bshd->bthd", weights, value)
    assert_same(FlashAttention(softcap=2.0)(query, key, value), wanted, (query, key, value))


def test_dropout_in_training_only():
    query, key, _ = states()
    attention, ones = FlashAttention(attention_dropout=0.3), torch.ones(2, 67, 4, 16)
    sums = attention.train()(query, key, ones)
    assert sums.std() > 0.01  # weights no longer add up to one
    assert abs(sums.mean().item() - 1) < 0.05  # but do on average: 536 rows of 67 weights
    torch.testing.assert_close(attention.eval()(query, key, ones), ones, **TOLERANCE)


def test_bfloat16_stays():
    inputs = [x.detach().bfloat16() for x in states()]
    found = FlashAttention(causal=True)(*inputs)
    assert found.dtype == torch.bfloat16
    wanted = expected(*(x.float() for x in inputs), is_causal=True)
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)  # one rounding to 8 bits, of up to 4


def test_nonsense():
    q, k, v = states(6)
    row = [x[0] for x in (q, k, v)]
    ends = torch.tensor([0, 6])
    cases = [
        (lambda: FlashAttention(attention_dropout=1.0), "attention_dropout=1.0: must be at least 0 and below 1"),
        (lambda: FlashAttention(window_size=(3,)), r"window_size=\(3,\): must be two"),
        (lambda: FlashAttention(window_size=(-2, 0)), r"window_size=\(-2, 0\): must be two"),
        (lambda: FlashAttention(softcap=0.0), "softcap=0.0: must be above 0"),
        (lambda: FlashAttention()(q), r"query: shape \(2, 6, 4, 16\), without key and value it must be \(batch"),
        (lambda: FlashAttention()(q, cu_seqlens=ends), r"it must be \(tokens, 3"),
        (lambda: FlashAttention()(q, k), "key, value: one of them is missing"),
        (lambda: FlashAttention()(*row), "query: 3 dims, must be"),
        (lambda: FlashAttention()(q, k, v, cu_seqlens=ends), "query: 5 dims, must be .* without batch"),
        (lambda: FlashAttention()(q, k.double(), v), "key: torch.float64, must be that of query"),
        (lambda: FlashAttention()(q, k, v[:, :5]), "value: shape .* must be that of key"),
        (lambda: FlashAttention()(q, k[:1], v[:1]), "key: shape .* must have the batch and head dim"),
        (lambda: FlashAttention()(q, k[:, :, :3], v[:, :, :3]), "key: 3 heads must divide the 4 of query"),
        (lambda: FlashAttention()(q, k, v, key_padding_mask=torch.ones(2, 5).bool()), "key_padding_mask: shape"),
        (lambda: FlashAttention()(q, k, v, key_padding_mask=torch.ones(2, 6)), "key_padding_mask: torch.float32"),
        (lambda: FlashAttention()(*row, cu_seqlens=ends, key_padding_mask=ends), "key_padding_mask, cu_seqlens: both"),
        (lambda: FlashAttention()(*row, cu_seqlens=torch.tensor([0, 7])), "cu_seqlens: must go up from 0 to .* 6"),
        (lambda: FlashAttention()(*row, cu_seqlens=torch.tensor([0, 4, 2, 6])), "cu_seqlens: must go up"),
        (lambda: FlashAttention()(*row, cu_seqlens=torch.tensor([0.0, 6.0])), "cu_seqlens: must be integers"),
        (lambda: FlashAttention()(q, k, v, cu_seqlens_k=ends), "cu_seqlens_k: given without cu_seqlens"),
        (lambda: FlashAttention()(row[0][:3], *row[1:], cu_seqlens=torch.tensor([0, 3])), "cu_seqlens_k: missing"),
        (
            lambda: FlashAttention()(*row, cu_seqlens=ends, cu_seqlens_k=torch.tensor([0, 3, 6])),
            "cu_seqlens_k: 2 documents, cu_seqlens has 1",
        ),
        (
            lambda: FlashAttention(causal=True)(q[:, :2], k, v, key_padding_mask=torch.tensor([[1] * 5 + [0]] * 2)),
            "key_padding_mask: hides the last key",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
