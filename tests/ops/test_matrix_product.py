"""`linear` against torch's: values, gradients, gradients of gradients, and every case in which it must step aside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_ext.layers.linear import Linear
from hf_ext.ops import matrix_product
from hf_ext.ops.matrix_product import add_outer_product, linear


# fp32 sums of some hundred products of unit size, in another order; double backward multiplies three such
CLOSE = {"atol": 2e-4, "rtol": 1e-5}
ROOT = Path(__file__).parents[2]
ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Small products too, so that odd sizes are cheap."""
    monkeypatch.setattr(matrix_product, "MIN_MULTIPLICATIONS", 0)


def operators(function) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (2, 3, 4), (2, 1, 33, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(48, 96), (96, 48), (37, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_values_and_gradients(shape, sizes, bias):
    num_in, num_out = sizes
    inputs = [torch.randn(*shape, num_in), torch.randn(num_out, num_in), *([torch.randn(num_out)] if bias else [])]
    upstream = torch.randn(*shape, num_out)
    results = []
    for function in (linear, F.linear):
        copies = [tensor.clone().requires_grad_() for tensor in inputs]
        output = function(*copies)
        first = torch.autograd.grad(output, copies, upstream, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first[:2]), copies[:2])
        results.append([output, *first, *second])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("change", ["transposed weight", "strided weight", "transposed input", "strided input"])
def test_any_strides(change):
    x, weight = torch.randn(6, 32), torch.randn(32, 32)
    if change == "transposed weight":
        weight = weight.T
    elif change == "strided weight":
        weight = torch.randn(32, 64)[:, ::2]
    elif change == "transposed input":
        x = torch.randn(32, 6).T
    else:
        x = torch.randn(12, 64)[::2, ::2]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), **CLOSE)


def test_only_wanted_gradients():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8)
    (grad,) = torch.autograd.grad(linear(x, weight).sum(), x)
    torch.testing.assert_close(grad, weight.sum(0).expand(4, 8), **CLOSE)
    assert not linear(x.detach(), weight).requires_grad


@pytest.mark.parametrize("frozen", [0, 1], ids=["input", "weight"])
def test_nothing_is_kept_for_a_frozen_factor(frozen):
    """What F.linear keeps: of x W^T the one factor for the other's gradient."""
    factors = [torch.randn(5, 48), torch.randn(96, 48)]
    factors[1 - frozen].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        output = linear(*factors)
    assert kept == [factors[frozen].shape]
    output.sum().backward()
    assert factors[1 - frozen].grad.shape == factors[1 - frozen].shape


def test_the_layer_takes_it():
    layer = Linear(64, 32)
    x = torch.randn(1, 3, 64, requires_grad=True)
    assert ONEDNN in operators(lambda: layer(x).sum().backward())
    assert ONEDNN in operators(lambda: layer(x.detach()))


@pytest.mark.parametrize(
    "why", ["bf16", "fp64", "autocast", "switched off", "small", "vmap", "counted", "empty", "a slice"]
)
def test_steps_aside(why, monkeypatch):
    x, weight = torch.randn(4, 32), torch.randn(16, 32)
    call = linear
    if why in ("bf16", "fp64"):
        dtype = torch.bfloat16 if why == "bf16" else torch.float64
        x, weight = x.to(dtype), weight.to(dtype)
    elif why == "small":
        monkeypatch.setattr(matrix_product, "MIN_MULTIPLICATIONS", 2**20)
    elif why == "vmap":
        call = torch.func.vmap(linear, in_dims=(0, None))
        x = x.unsqueeze(1)
    elif why == "a slice":
        weight = torch.randn(16, 64)[:, :32]
    elif why == "empty":
        x = x[:0]
    expected = F.linear(x, weight)
    with torch.autocast("cpu", enabled=why == "autocast"), torch.backends.mkldnn.flags(enabled=why != "switched off"):
        if why == "counted":
            with FlopCounterMode(display=False) as counter:
                found = linear(x, weight)
            assert counter.get_total_flops() == 2 * 4 * 16 * 32
        else:
            used = operators(lambda: call(x, weight))
            assert ONEDNN not in used
            found = call(x, weight)
    assert found.dtype == (torch.bfloat16 if why == "autocast" else expected.dtype)
    torch.testing.assert_close(found.to(expected.dtype), expected, atol=0.2 if why == "autocast" else 2e-4, rtol=1e-5)


@pytest.mark.parametrize("at_once", [2**21, 24], ids=["whole", "by parts"])
def test_outer_products_add_up(at_once, monkeypatch):
    monkeypatch.setattr(matrix_product, "ADDED_AT_ONCE", at_once)
    total, a, b = torch.randn(7, 8), torch.randn(5, 7), torch.randn(5, 8)
    expected = total + a.T @ b
    assert ONEDNN in operators(lambda: add_outer_product(total, a, b))
    torch.testing.assert_close(total, expected, **CLOSE)


def test_compiles_to_torch_s_own():
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(linear, backend=keep, fullgraph=True)
    compiled(torch.randn(4, 8), torch.randn(8, 8))
    assert "linear" in str(graphs[0].code)
    assert "mkldnn" not in str(graphs[0].code)


# products of 600 shapes, for which oneDNN by itself keeps 1,950 MB, and 230 so
GROWTH = """
import torch
from hf_ext.ops.matrix_product import linear

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

weight = torch.randn(256, 256, requires_grad=True)
for rows in (1000, *range(1000, 1600)):
    linear(torch.randn(rows, 256, requires_grad=True), weight).sum().backward()
    if rows == 1000:
        before = resident()
print(resident() - before)
"""
MEGABYTES_OF_SHAPES = 500


@pytest.mark.heavy
@pytest.mark.skipif(
    not matrix_product.HAS_ONEDNN or not Path("/proc/self/statm").exists(), reason="no oneDNN, or no /proc"
)
def test_many_shapes_take_no_memory():
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < MEGABYTES_OF_SHAPES


def seen_by_a_compiler(function, *inputs) -> tuple[set[str], torch.Tensor]:
    """Names of the operations in the graph that a compiler would get, and what they give."""
    torch._dynamo.reset()
    names = set()

    def backend(graph, _):
        names.update(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    return names, torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (4, 1), (1, 2, 2)], ids=str)
@torch.no_grad()
def test_a_compiler_sees_few_rows_as_sums(shape, dtype):
    x, weight, bias = torch.randn(*shape, 48).to(dtype), torch.randn(37, 48).to(dtype), torch.randn(37).to(dtype)
    for more in ((), (bias,)):
        names, found = seen_by_a_compiler(linear, x, weight, *more)
        assert "sum" in names
        assert not any("linear" in name for name in names)
        expected = F.linear(x.double(), weight.double(), *(b.double() for b in more))
        # bf16: rounded once, at the end
        close = {"atol": 0.13, "rtol": 8e-3} if dtype == torch.bfloat16 else CLOSE
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, **close)


@torch.no_grad()
def test_a_compiler_sees_more_rows_as_one_product():
    x, weight, bias = torch.randn(5, 1, 48), torch.randn(37, 48), torch.randn(37)
    for more in ((), (bias,)):
        names, found = seen_by_a_compiler(linear, x, weight, *more)
        assert any("onednn_linear" in name for name in names) == matrix_product.HAS_ONEDNN
        torch.testing.assert_close(found, F.linear(x, weight, *more), **CLOSE)
    assert "sum" not in names


@pytest.mark.parametrize("why", ["gradient", "bf16", "a slice", "small", "autocast", "other dtypes"])
def test_a_compiler_sees_torch_s_own(why, monkeypatch):
    x, weight = torch.randn(5, 48), torch.randn(37, 48)
    if why == "bf16":
        x, weight = x.bfloat16(), weight.bfloat16()
    elif why == "a slice":
        weight = torch.randn(37, 96)[:, ::2]
    elif why == "small":
        monkeypatch.setattr(matrix_product, "MIN_MULTIPLICATIONS", 2**20)
    elif why == "gradient":
        x = x[:1]
    with torch.set_grad_enabled(why == "gradient"), torch.autocast("cpu", enabled=why in ("autocast", "other dtypes")):
        if why == "other dtypes":
            x = x.bfloat16()
        names, _ = seen_by_a_compiler(linear, x, weight)
    assert any("linear" in name for name in names)
    assert not any("onednn" in name or "sum" in name for name in names)


@torch.no_grad()
def test_an_export_sees_torch_s_own():
    """A file for other machines."""
    program = torch.export.export(Linear(48, 37), (torch.randn(1, 48),))
    assert any("linear" in str(node.target) for node in program.graph.nodes)
    assert not any("onednn" in str(node.target) for node in program.graph.nodes)
