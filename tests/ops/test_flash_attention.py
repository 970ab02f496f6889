"""Tiled attention against the eager reference, and the reference against torch's own."""

from functools import partial

import pytest
import torch

from hf_ext.ops.eager_attention import causal_mask, eager_attention
from hf_ext.ops.flash_attention import flash_attention
from hf_ext.ops.mask_rule import MaskRule
from hf_ext.ops.score_bias import ScoreBias, alibi_slopes, relative_buckets


# fp32 sums in another order: a few ulp of numbers of order 1, over up to 300 keys
FP32 = {"atol": 1e-5, "rtol": 1e-5}
# bf16 carries 8 bits: the results are rounded to 2^-9 relative, and backward reads the rounded output
BF16 = {"atol": 2e-2, "rtol": 2e-2}
FP64 = {"atol": 1e-12, "rtol": 1e-10}

SHAPES = [  # B, H, K, T, S, D
    (2, 4, 4, 37, 37, 16),
    (1, 8, 2, 130, 130, 32),
    (2, 6, 1, 65, 65, 24),
    (1, 2, 2, 1, 77, 16),
    (2, 4, 2, 19, 83, 8),
    (1, 1, 1, 1, 1, 4),
]


def inputs(B, H, K, T, S, D, dtype=torch.float32, seed=0, scale=2.0):
    """Scores of a few units: the softmax is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, T, D), (B, K, S, D), (B, K, S, D)]
    tensors = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    tensors[0] = tensors[0] * scale
    return [t.to(dtype).requires_grad_() for t in tensors]


def padding_rule(B, T, S, *, lengths, offset=0):
    """Causal with left padding: row b holds lengths[b] tokens."""
    starts = torch.tensor([S - n for n in lengths])

    def rule(batch, head, query, key):
        return (key <= query) & (key >= starts[batch])

    return MaskRule(rule, B, T, S, query_offset=offset)


def masks(B, T, S):
    generator = torch.Generator().manual_seed(1)
    random = torch.rand(B, 1, T, S, generator=generator) > 0.3
    random[0, 0, 0] = False  # a query that sees nothing
    yield "none", None
    yield "causal rule with padding", padding_rule(B, T, S, lengths=[S] + [max(1, S // 2)] * (B - 1), offset=S - T)
    yield "bool with an empty row", random
    yield "additive", torch.randn(B, 1, T, S, generator=generator)
    yield "transformers' additive", torch.where(random, 0.0, torch.finfo(torch.float32).min)


def both(query, key, value, **options):
    """Outputs and gradients of the reference and of the tiled one."""
    results = []
    for function in (lambda *a, **k: eager_attention(*a, **k)[0], flash_attention):
        for tensor in (query, key, value):
            tensor.grad = None
        output = function(query, key, value, **options)
        torch.manual_seed(3)
        output.backward(torch.randn(output.shape, dtype=torch.float64).to(output.dtype))
        results.append([output.detach(), query.grad, key.grad, value.grad])
    return results


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_tiled_equals_eager_forward_and_backward(shape, softcap):
    B, _, _, T, S, _ = shape
    for name, mask in masks(B, T, S):
        for is_causal in (False, True):
            for tiles in ({}, {"query_tile": 16, "key_tile": 32}):
                options = {"mask": mask, "is_causal": is_causal, "softcap": softcap}
                query, key, value = inputs(*shape)
                expected = [eager_attention(query, key, value, **options)[0]]
                weight = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(3))
                expected += torch.autograd.grad((expected[0] * weight).sum(), (query, key, value))
                got = [flash_attention(query, key, value, **options, **tiles)]
                got += torch.autograd.grad((got[0] * weight).sum(), (query, key, value))
                for what, a, b in zip(("output", "query", "key", "value"), got, expected, strict=True):
                    torch.testing.assert_close(a, b, **FP32, msg=lambda m, w=what, n=name: f"{n}, {w}: {m}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, BF16), (torch.float64, FP64)], ids=str)
def test_other_dtypes(dtype, tolerance):
    """Against the reference in fp64 on the same (rounded) inputs."""
    tensors = inputs(2, 4, 2, 45, 45, 16, dtype=dtype)
    _, got = both(*tensors, is_causal=True)
    expected, _ = both(*(t.detach().double().requires_grad_() for t in tensors), is_causal=True)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, **tolerance)


def test_reference_equals_torch():
    query, key, value = inputs(2, 4, 4, 33, 33, 16)
    for options in ({"is_causal": True}, {"mask": torch.rand(2, 1, 33, 33) > 0.2}, {}):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=options.get("mask"), is_causal=options.get("is_causal", False)
        )
        torch.testing.assert_close(eager_attention(query, key, value, **options)[0], expected, **FP32)


def test_empty_row_gives_zeros_and_no_gradient():
    query, key, value = inputs(1, 2, 2, 5, 5, 8)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 2, :] = False
    for expected, got in [both(query, key, value, mask=mask)]:
        for output, query_grad, *_ in (expected, got):
            assert output[:, :, 2].abs().max() == 0
            assert query_grad[:, :, 2].abs().max() == 0
            assert output[:, :, 1].abs().max() > 0


def test_mask_by_head_with_grouped_heads():
    query, key, value = inputs(2, 4, 2, 21, 21, 8)
    mask = torch.rand(2, 4, 21, 21, generator=torch.Generator().manual_seed(2)) > 0.4
    expected, got = both(query, key, value, mask=mask)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **FP32)


@pytest.mark.parametrize("kind", ["alibi", "relative", "relative, both directions"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_score_bias_forward_and_backward(kind, shape):
    B, H, _, T, S, _ = shape
    generator = torch.Generator().manual_seed(4)
    packed = torch.cat([torch.arange(S - S // 3), torch.arange(S // 3)])[None]
    if kind == "alibi":
        weight, options = alibi_slopes(H).requires_grad_(), {}
    else:
        weight = torch.randn(H, 8, generator=generator).requires_grad_()
        options = {"max_distance": 20, "bidirectional": "both" in kind}
    for positions in (torch.arange(S)[None], packed, torch.stack([torch.arange(S)] * B) * 2):
        bias = ScoreBias(weight, positions[:, S - T :], positions, **options)
        mask = padding_rule(B, T, S, lengths=[S] * B, offset=S - T)
        query, key, value = inputs(*shape)
        results = []
        for function in (
            lambda *a, **k: eager_attention(*a, **k)[0],
            partial(flash_attention, query_tile=16, key_tile=32),
        ):
            output = function(query, key, value, mask=mask, bias=bias, softcap=4.0)
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
            results.append([output, *torch.autograd.grad((output * weights).sum(), (query, key, value, weight))])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sinks_forward_and_backward(shape):
    B, H, _, T, S, _ = shape
    sinks = torch.randn(H, generator=torch.Generator().manual_seed(4)).mul(3).requires_grad_()
    for name, mask in masks(B, T, S):
        query, key, value = inputs(*shape)
        results = []
        for function in (
            lambda *a, **k: eager_attention(*a, **k)[0],
            partial(flash_attention, query_tile=16, key_tile=32),
        ):
            output = function(query, key, value, mask=mask, sinks=sinks)
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
            results.append([output, *torch.autograd.grad((output * weights).sum(), (query, key, value, sinks))])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_sinks_are_gpt_oss_s():
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as theirs

    query, key, value = inputs(2, 4, 2, 9, 9, 8)
    module = torch.nn.Module()
    module.num_key_value_groups, module.sinks = 2, torch.randn(4)
    mask = torch.zeros(1, 1, 9, 9).masked_fill(~causal_mask(9, 9), torch.finfo(torch.float32).min)
    expected, weights = theirs(module, query, key, value, mask, scaling=8**-0.5)
    got, got_weights = eager_attention(query, key, value, mask=mask, sinks=module.sinks)
    torch.testing.assert_close(got.transpose(1, 2), expected, **FP32)
    torch.testing.assert_close(got_weights, weights, **FP32)


def test_buckets_and_slopes_are_transformers_own():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    for both_ways in (True, False):
        expected = T5Attention._relative_position_bucket(distance, both_ways, num_buckets=32, max_distance=128)
        assert torch.equal(relative_buckets(distance, 32, 128, both_ways), expected)
    for num_heads in (1, 2, 6, 8, 12, 25):
        expected = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
        torch.testing.assert_close(alibi_slopes(num_heads), expected, atol=0, rtol=1e-6)


def test_gradient_is_the_numerical_one():
    query, key, value = inputs(1, 2, 1, 7, 9, 4, dtype=torch.float64, scale=1.0)
    rule = MaskRule(lambda b, h, q, k: k <= q, 1, 7, 9, query_offset=2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: flash_attention(q, k, v, mask=rule, softcap=2.0, query_tile=3, key_tile=4), (query, key, value)
    )


def test_dropout_is_the_same_in_backward_and_has_the_right_mean():
    query, key, value = inputs(1, 2, 2, 6, 6, 4, dtype=torch.float64, scale=1.0)

    def dropped(q, k, v):
        torch.manual_seed(5)
        return flash_attention(q, k, v, dropout=0.4, query_tile=4, key_tile=4)

    assert torch.autograd.gradcheck(dropped, (query, key, value))
    torch.manual_seed(0)
    draws = torch.stack([flash_attention(query, key, value, dropout=0.4) for _ in range(3000)]).detach()
    assert draws.std(dim=0).min() > 0.01
    # the mean of 3,000 draws of a spread of about 1 is within 0.02 of its expectation; five times that never fails
    torch.testing.assert_close(draws.mean(0), flash_attention(query, key, value).detach(), atol=0.1, rtol=0)


def test_eager_drops_weights_in_training_only():
    query, key, value = inputs(1, 2, 2, 6, 6, 4, dtype=torch.float64, scale=1.0)
    torch.manual_seed(0)
    output, weights = eager_attention(query, key, value, dropout=0.5)
    plain, plain_weights = eager_attention(query, key, value)
    dropped = weights == 0
    assert 0.2 < dropped.double().mean() < 0.8
    torch.testing.assert_close(weights[~dropped], 2 * plain_weights[~dropped])
    assert not torch.equal(output, plain)


def test_nothing_of_size_query_times_key_is_made():
    """Memory is linear: with tiles of 64 and 2,048 tokens no tensor is larger than the inputs or a tile."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    query, key, value = inputs(1, 1, 1, 2048, 2048, 8)
    rule = MaskRule(lambda b, h, q, k: (k <= q) & (q - k < 100), 1, 2048, 2048)
    with Record():
        flash_attention(query, key, value, mask=rule, query_tile=64, key_tile=64).sum().backward()
    assert largest == 2048 * 8


def test_mask_that_wants_a_gradient_is_refused():
    query, key, value = inputs(1, 1, 1, 4, 4, 4)
    bias = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="mask requires a gradient"):
        flash_attention(query, key, value, mask=bias)
