"""Triton's rotary, norms, gated activations, cross-entropy and grouped products against their twins in torch."""

import pytest
import torch
from ops.triton.attention_cases import DEVICE

from hf_ext.layers.feed_forward import ACTIVATIONS as TWINS
from hf_ext.layers.norms import LayerNorm, RMSNorm, UnitOffsetRMSNorm
from hf_ext.ops.cross_entropy import cross_entropy
from hf_ext.ops.grouped_matmul import grouped_matmul
from hf_ext.ops.kernel_choice import kernels
from hf_ext.ops.rotary import apply_rotary, rotary_cos_sin
from hf_ext.ops.triton.triton_cross_entropy import cross_entropy_of_chunk
from hf_ext.ops.triton.triton_gated import ACTIVATIONS, triton_gated
from hf_ext.ops.triton.triton_grouped_matmul import grouped_outer_product, grouped_product
from hf_ext.ops.triton.triton_norms import triton_layer_norm, triton_rms_norm
from hf_ext.ops.triton.triton_rotary import triton_rotary


# the twin computes in fp64 on the same inputs: sums of a few hundred fp32 numbers
FP32 = {"atol": 2e-5, "rtol": 2e-5}
# results and gradients are rounded to 8 bits once
BF16 = {"atol": 1e-2, "rtol": 1e-2}
TOLERANCES = [(torch.float32, FP32), (torch.bfloat16, BF16)]


def random(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)
    return values.to(dtype).to(DEVICE).requires_grad_()


def compare(got, expected, inputs, exact, tolerance) -> None:
    """Outputs, and gradients for random ones of the outputs, laid out as products give them: the last dim has a stride."""
    got, expected = ((x,) if isinstance(x, torch.Tensor) else tuple(x) for x in (got, expected))
    cotangents = [random(*x.shape, dtype=x.dtype, seed=i).detach().mT.contiguous().mT for i, x in enumerate(got)]
    grads = torch.autograd.grad(got, inputs, cotangents, retain_graph=True)
    expected_grads = torch.autograd.grad(expected, exact, [x.double() for x in cotangents])
    for a, b in zip((*got, *grads), (*expected, *expected_grads), strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance["atol"] * scale, rtol=tolerance["rtol"])


def doubled(*tensors):
    return [x.detach().double().requires_grad_() for x in tensors]


@pytest.mark.parametrize(
    ("R", "D", "interleaved", "dtype", "tolerance"),
    [
        pytest.param(R, D, interleaved, dtype, tolerance, marks=marks)
        for R, D, interleaved, (dtype, tolerance), marks in (
            (12, 12, False, TOLERANCES[0], []),
            (8, 20, True, TOLERANCES[1], []),
            *(
                (*sizes, turn, both, pytest.mark.full)
                for sizes in ((12, 12), (8, 20))
                for turn in (0, 1)
                for both in TOLERANCES
            ),
        )
    ],
    ids=str,
)
def test_rotary(R, D, interleaved, dtype, tolerance):
    B, H, K, T = 2, 3, 1, 7
    query, key = random(B, T, H, D, dtype=dtype), random(B, K, T, D, dtype=dtype)
    positions = torch.arange(T, device=DEVICE)[None] * 3
    cos, sin = rotary_cos_sin(positions, 1.0 / 10 ** torch.arange(R // 2, device=DEVICE), interleaved=interleaved)
    exact = doubled(query, key)
    got = triton_rotary(query.transpose(1, 2), key, cos, sin, interleaved)
    expected = apply_rotary(exact[0].transpose(1, 2), exact[1], cos.double(), sin.double(), interleaved)
    compare(got, expected, (query, key), exact, tolerance)
    with torch.no_grad():
        inside = query.detach().clone().transpose(1, 2), key.detach().clone()
        triton_rotary(*inside, cos, sin, interleaved, in_place=True)
        assert all(torch.equal(a, b) for a, b in zip(inside, got, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    ("kind", "d"),
    [
        (kind, d)
        for kind in ("rms", "unit offset", "layer", "layer without bias")
        for d in (1, 37, 300)
        if d > 1 or "layer" not in kind  # a row of one number has no variance
    ],
)
def test_norms(kind, adds, d, dtype, tolerance):
    x, weight, bias = random(3, 5, d, dtype=dtype), random(d, dtype=dtype), random(d, dtype=dtype, seed=1)
    residual = random(3, 5, d, dtype=dtype, seed=2)
    layers = {"rms": RMSNorm, "unit offset": UnitOffsetRMSNorm}
    layer = layers.get(kind, LayerNorm)(d, eps=1e-3, **({"bias": kind == "layer"} if "layer" in kind else {}))
    inputs = [x, weight] + ([bias] if kind == "layer" else []) + ([residual] if adds else [])
    exact = doubled(*inputs)
    parameters = {"weight": exact[1]} | ({"bias": exact[2]} if kind == "layer" else {})
    options = {"eps": 1e-3, "residual": residual if adds else None}
    if "layer" in kind:
        got = triton_layer_norm(x, weight, bias if kind == "layer" else None, **options)
    else:
        got = triton_rms_norm(x, weight, unit_offset=kind == "unit offset", **options)
    total = exact[0] + exact[-1] if adds else exact[0]
    if adds and dtype == torch.bfloat16:
        total = total + (total.detach().to(dtype).double() - total.detach())  # the sum is kept rounded
    expected = torch.func.functional_call(layer.to(DEVICE).double(), parameters, (total,))
    compare(got, (expected, total) if adds else expected, inputs, exact, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(activation, dtype, tolerance):
    together = random(2, 5, 74, dtype=dtype)
    exact = doubled(together)
    got = triton_gated(activation, *together.chunk(2, dim=-1))
    gate, up = exact[0].chunk(2, dim=-1)
    compare(got, TWINS[activation](gate) * up, (together,), exact, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "z_loss_weight": 1e-2}, {"softcap": 2.0, "label_smoothing": 0.2}], ids=str
)
def test_cross_entropy(options, dtype, tolerance):
    logits = random(7, 133, dtype=dtype)
    labels = torch.arange(7, device=DEVICE) * 19
    exact = doubled(logits)
    losses = torch.stack(
        [cross_entropy(row[None], label[None], **options) for row, label in zip(exact[0], labels, strict=True)]
    )
    grad = torch.autograd.grad(losses.sum(), exact)[0]
    written = logits.detach().clone()
    kept = cross_entropy_of_chunk(written, labels, **options, wants_gradient=False)
    assert torch.equal(written, logits)
    got = cross_entropy_of_chunk(written, labels, **options)
    assert torch.equal(kept, got)
    torch.testing.assert_close(got.double(), losses, **FP32)
    torch.testing.assert_close(written.double(), grad, **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
@pytest.mark.parametrize("stops", [(0, 3, 3, 80, 131), (5,), (0, 0, 1)], ids=str)
def test_grouped_products(stops, dtype, tolerance):
    x, weight = random(stops[-1], 45, dtype=dtype), random(len(stops), 37, 45, dtype=dtype)
    grad = random(stops[-1], 37, dtype=dtype)
    offsets = torch.tensor(stops, device=DEVICE)
    group = torch.searchsorted(offsets, torch.arange(len(x), device=DEVICE), right=True)
    members = torch.nn.functional.one_hot(group, len(stops)).double()
    pairs = [
        (grouped_product(x, weight.mT, offsets), torch.einsum("mk,mnk->mn", x.double(), weight.double()[group])),
        (grouped_product(grad, weight, offsets), torch.einsum("mn,mnk->mk", grad.double(), weight.double()[group])),
        (
            grouped_outer_product(grad, x, offsets),
            torch.einsum("mg,mn,mk->gnk", members, grad.double(), x.double()),
        ),
    ]
    for got, expected in pairs:
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(got.double(), expected, atol=tolerance["atol"] * scale, rtol=tolerance["rtol"])


@pytest.mark.parametrize(("K", "N"), [(64, 32), (52, 44)], ids=["rows of 128 bytes", "rows of 104 bytes"])
def test_grouped_products_by_name(K, N):
    """Through the operator, forward and backward, bf16: the numbers of its loop."""
    x, weight = random(9, K, dtype=torch.bfloat16), random(3, N, K, dtype=torch.bfloat16)
    offsets, results = torch.tensor([4, 4, 9], device=DEVICE), []
    for choice in ("torch", "triton"):
        with kernels(choice):
            got = grouped_matmul(x, weight, offsets)
            results.append((got, *torch.autograd.grad(got.float().square().sum(), (x, weight))))
    for a, b in zip(*results, strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double(), b.double(), atol=BF16["atol"] * scale, rtol=BF16["rtol"])


def test_labels_outside_the_vocabulary_give_no_number():
    """On a GPU nobody looks at the labels first: what lies beside the logits must not become a loss."""
    logits = random(5, 33).detach()
    labels = torch.tensor([3, -100, 32, 33, 10**6], device=DEVICE)
    losses = cross_entropy_of_chunk(logits, labels)
    assert losses.isnan().tolist() == [False, True, False, True, True]


def test_shapes_that_do_not_go_together_are_refused():
    """A kernel follows addresses: it would read what lies beside."""
    x = random(2, 3, 8)
    wide, cos = random(1, 2, 5, 8), torch.ones(1, 5, 8, device=DEVICE)
    calls = {
        "up: shape": lambda: triton_gated("silu", x, x[:1]),
        "weight: shape": lambda: triton_rms_norm(x, random(7)),
        "bias: shape": lambda: triton_layer_norm(x, random(8), random(1)),
        "residual: shape": lambda: triton_rms_norm(x, random(8), residual=x[:, :1]),
        "key: shape": lambda: triton_rotary(wide, wide[:, :, :4], cos, cos),
        "cos: shape": lambda: triton_rotary(wide, wide, cos[:, :4], cos[:, :4]),
        "labels: shape": lambda: cross_entropy_of_chunk(x[0].detach(), torch.zeros(2, dtype=torch.long)),
        "logits: strides": lambda: cross_entropy_of_chunk(x[0].detach().mT, torch.zeros(8, dtype=torch.long)),
    }
    for match, call in calls.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_parameters_and_offsets_of_any_stride():
    """Every second number of a vector, as views have them."""
    x, long = random(4, 8), random(16)
    torch.testing.assert_close(triton_rms_norm(x, long[::2]), triton_rms_norm(x, long[::2].contiguous()))
    weight, offsets = random(2, 8, 5), torch.tensor([1, 0, 4, 0], device=DEVICE)[::2]
    got = grouped_product(x, weight, offsets), grouped_outer_product(x, x, offsets)
    expected = grouped_product(x, weight, offsets.clone()), grouped_outer_product(x, x, offsets.clone())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_nothing_at_all():
    """No rows, no tokens."""
    x, heads, cos = random(0, 8), random(1, 2, 0, 8), torch.ones(1, 0, 8, device=DEVICE)
    losses = cross_entropy_of_chunk(x.detach(), torch.zeros(0, dtype=torch.long, device=DEVICE))
    outputs = [triton_rms_norm(x, random(8)), triton_gated("silu", x, x), *triton_rotary(heads, heads, cos, cos)]
    grads = torch.autograd.grad(sum(y.sum() for y in outputs), (x, heads))
    assert losses.shape == (0,)
    assert [g.shape for g in grads] == [x.shape, heads.shape]
    product = grouped_product(x.detach(), random(2, 8, 5), torch.zeros(2, dtype=torch.long, device=DEVICE))
    assert product.shape == (0, 5)


def test_one_angle_for_all_tokens():
    query = random(1, 2, 5, 8)
    cos, sin = torch.full((1, 1, 8), 0.6, device=DEVICE), torch.full((1, 1, 8), 0.8, device=DEVICE)
    for got, expected in zip(triton_rotary(query, query, cos, sin), apply_rotary(query, query, cos, sin), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_second_derivative_is_refused():
    """Autograd can't look into a kernel; a gradient that lacks a part would be wrong without a word."""
    query, cos = random(1, 2, 5, 8), torch.ones(1, 5, 8, device=DEVICE)
    turned = triton_rotary(query, query, cos, cos)[0]
    grad = torch.autograd.grad(turned.square().sum(), query, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
