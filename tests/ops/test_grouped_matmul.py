"""The grouped product against a product a row."""

from types import SimpleNamespace

import pytest
import torch

from hf_ext.ops.grouped_matmul import _device_has_kernel, grouped_matmul


def rows_and_groups(stops=(0, 3, 3, 8, 13), K=5, N=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(stops[-1], K, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(len(stops), N, K, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.tensor(stops)


def by_row(x, weight, stops):
    group = torch.searchsorted(stops, torch.arange(len(x)), right=True)
    return torch.einsum("mk,mnk->mn", x, weight[group])


@pytest.mark.parametrize("stops", [(0, 3, 3, 8, 13), (13,), (0, 0, 1)], ids=str)
def test_forward_and_gradients(stops):
    x, weight, offsets = rows_and_groups(stops)
    got, expected = grouped_matmul(x, weight, offsets), by_row(x, weight, offsets)
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), cotangent),
        torch.autograd.grad(expected, (x, weight), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradients_numerically():
    x, weight, offsets = rows_and_groups((0, 2, 5), K=3, N=2)
    assert torch.autograd.gradcheck(lambda x, w: grouped_matmul(x, w, offsets), (x, weight))


def test_operator_is_well_formed():
    torch.library.opcheck(torch.ops.hf_ext.grouped_matmul.default, rows_and_groups())


def test_autocast_casts_both():
    x, weight, offsets = rows_and_groups(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = grouped_matmul(x, weight, offsets)
    assert got.dtype == torch.bfloat16
    got.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(got.float(), by_row(x, weight, offsets), atol=0.1, rtol=0.05)


def test_which_rows_the_device_s_own_product_takes(monkeypatch):
    """bf16 whose rows begin at multiples of 16 bytes, on Hopper and later, whichever kernels were chosen."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))

    def taken(K, N, dtype=torch.bfloat16, device="cuda") -> bool:
        x = SimpleNamespace(device=torch.device(device), dtype=dtype, itemsize=dtype.itemsize)
        return _device_has_kernel(x, torch.empty(3, N, K, dtype=dtype, device="meta"))

    assert taken(64, 32)
    assert not taken(52, 32)
    assert not taken(64, 44)
    assert not taken(64, 32, dtype=torch.float16)
    assert not taken(64, 32, device="cpu")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 9))
    assert not taken(64, 32)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("K", "N"), [(64, 32), (52, 32), (64, 44)], ids=["its own", "rows of 104 bytes", "of 88 bytes"]
)
def test_the_device_s_own_product(K, N):
    """Rows that don't begin at multiples of 16 bytes it would refuse."""
    x, weight, offsets = rows_and_groups((16, 48, 48, 128), K=K, N=N, dtype=torch.bfloat16)
    expected = by_row(x.float(), weight.float(), offsets)
    leaves = [t.detach().cuda().requires_grad_() for t in (x, weight)]
    got = grouped_matmul(*leaves, offsets.cuda())
    torch.testing.assert_close(got.float().cpu(), expected, atol=0.3, rtol=0.02)
    grads = torch.autograd.grad(got.float().sum(), leaves)
    for got_grad, grad in zip(grads, torch.autograd.grad(expected.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(got_grad.float().cpu(), grad.float(), atol=0.3, rtol=0.02)
