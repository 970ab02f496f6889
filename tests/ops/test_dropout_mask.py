"""`dropout` on the CPU: its distribution, its gradients, and every case in which it must step aside."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hf_ext.layers.dropout import Dropout
from hf_ext.ops.dropout_mask import LEVELS, dropout


N = 400_000
DEVIATIONS = 5  # standard deviations of a count: a right one leaves them once in two million draws


def operators(function) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_shares_and_scale(p):
    torch.manual_seed(0)
    rounded = round(p * LEVELS) / LEVELS
    output = dropout(torch.ones(N), p)
    assert output.unique().tolist() == pytest.approx([0, 1 / (1 - rounded)])
    deviation = math.sqrt(p * (1 - p) * N)
    assert abs(int((output == 0).sum()) - rounded * N) < DEVIATIONS * deviation
    for place in range(4):  # the four that share a draw, the last of which has the sign of an int64
        assert abs(int((output[place::4] == 0).sum()) - rounded * N / 4) < DEVIATIONS * deviation / 2


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 256])
def test_elements_are_dropped_by_themselves(distance):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(N), 0.3) == 0
    both = int((dropped[:-distance] & dropped[distance:]).sum())
    share = 0.3**2
    assert abs(both - share * (N - distance)) < 2 * DEVIATIONS * math.sqrt(share * (1 - share) * N)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradient_is_the_mask(shape, dtype):
    x = (torch.rand(shape) + 1).to(dtype).requires_grad_()
    torch.manual_seed(1)
    output = dropout(x, 0.5)
    torch.manual_seed(1)
    mask = dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert output.dtype == dtype
    assert torch.equal(output, x.detach() * mask)
    upstream = torch.randn(shape).to(dtype)
    (grad,) = torch.autograd.grad(output, x, upstream)
    assert torch.equal(grad, upstream * mask)


def test_gradient_of_the_gradient():
    x = torch.randn(64, dtype=torch.float64, requires_grad=True)

    def seeded(x):
        torch.manual_seed(3)
        return dropout(x, 0.4).square()

    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)


def test_a_slice_is_dropped_as_its_copy():
    x = torch.randn(8, 10)[:, ::2].T
    torch.manual_seed(0)
    first = dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x.contiguous(), 0.5), first)


def test_checkpointing_draws_the_same_again():
    torch.manual_seed(0)
    layer, x = Dropout(0.5), torch.randn(1000, requires_grad=True)
    output = checkpoint(layer, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(grad == 0, output == 0)


def test_not_in_evaluation_and_not_without_a_probability():
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x or torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_draws_what_is_fast_and_steps_aside():
    x = torch.randn(16, 16)
    assert "aten::bernoulli_" not in operators(lambda: dropout(x, 0.1))
    assert "aten::random_" in operators(lambda: dropout(x, 0.1))
    assert "aten::bernoulli_" in operators(lambda: dropout(x, 1e-6))  # no multiple of 1 / 65,536 is near
    vectorized = torch.func.vmap(lambda row: dropout(row, 0.5), randomness="different")(torch.ones(64, 64))
    assert 0 < int((vectorized == 0).sum()) < vectorized.numel()
    assert dropout(torch.ones(4, 4, device="meta"), 0.5).is_meta
    assert dropout(torch.ones(0, 4), 0.5).shape == (0, 4)


def test_compiles_into_one_graph():
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    share = float((compiled(torch.ones(100_000)) == 0).float().mean())
    assert abs(share - 0.5) < DEVIATIONS * math.sqrt(0.25 / 100_000)
