"""`recomputed`: the function's own numbers and gradients, with nothing kept but its inputs."""

import pytest
import torch
from torch.nn.functional import silu

from hf_ext.ops.recomputed import recomputed


def gated(gate, up):
    return silu(gate) * up


def kept(function) -> int:
    """Tensors that autograd keeps."""
    pointers = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (pointers.add(t.data_ptr()), t)[1], lambda t: t):
        function()
    return len(pointers)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
def test_gradients_and_their_gradients(wanted):
    inputs = [torch.randn(3, 5) for _ in wanted]
    upstream = torch.randn(3, 5)
    results = []
    for function in (gated, lambda *tensors: recomputed(gated, *tensors)):
        tensors = [tensor.clone().requires_grad_(want) for tensor, want in zip(inputs, wanted, strict=True)]
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        output = function(*[tensor * 1 for tensor in tensors])  # not leaves
        first = torch.autograd.grad(output, leaves, upstream, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves) if all(wanted) else ()
        results.append([output, *first, *second])
    for ours, expected in zip(*reversed(results), strict=True):
        assert torch.equal(ours, expected)


def test_keeps_its_inputs_only():
    gate, up = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    assert kept(lambda: gated(gate, up)) == 3
    assert kept(lambda: recomputed(gated, gate, up)) == 2


def test_where_nothing_is_kept_anyway():
    gate, up = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    with torch.no_grad():
        assert not recomputed(gated, gate, up).requires_grad
    mapped = torch.func.vmap(lambda *tensors: recomputed(gated, *tensors))(gate, up)
    torch.testing.assert_close(mapped, gated(gate, up))
    compiled = torch.compile(lambda *tensors: recomputed(gated, *tensors), fullgraph=True, backend="aot_eager")
    compiled(gate, up).sum().backward()
    torch.testing.assert_close(gate.grad, torch.autograd.grad(gated(gate, up).sum(), gate)[0])
