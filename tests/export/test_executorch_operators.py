"""What ExecuTorch computes otherwise, in terms of other operators: torch's numbers, and its shapes."""

import pytest
import torch

from hf_ext.export.executorch_operators import rewritten


X = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(0))
INDEX = torch.randint(0, 10, X.shape, generator=torch.Generator().manual_seed(1))
WHOLE = (X * 10).long()
aten = torch.ops.aten

CASES = {
    "gelu": (aten.gelu.default, (X,), {"approximate": "tanh"}),
    "chunk": (aten.chunk.default, (X, 2, -1), {}),
    "chunk, a smaller last": (aten.chunk.default, (X, 3, 1), {}),
    "chunk, fewer than asked": (aten.chunk.default, (X, 6, 2), {}),
    "split": (aten.split.Tensor, (X, 4, 2), {}),
    "split, first dim": (aten.split.Tensor, (X, 2), {}),
    "split by sizes": (aten.split_with_sizes.default, (X, [1, 4, 5]), {"dim": -1}),
    "unbind": (aten.unbind.int, (X, 1), {}),
    "unbind, first dim": (aten.unbind.int, (X,), {}),
    "unsqueeze last": (aten.unsqueeze.default, (X, -1), {}),
    "unsqueeze first": (aten.unsqueeze.default, (X, 0), {}),
    "unsqueeze inside": (aten.unsqueeze.default, (X, -2), {}),
    "stack": (aten.stack.default, ([X, X + 1], -1), {}),
    "stack, first dim": (aten.stack.default, ([X, X + 1],), {}),
    "repeat_interleave": (aten.repeat_interleave.self_int, (X, 2), {"dim": -1}),
    "repeat_interleave, inside": (aten.repeat_interleave.self_int, (X, 3, 1), {}),
    "scatter the largest": (aten.scatter_reduce.two, (torch.zeros_like(WHOLE), -1, INDEX, WHOLE, "amax"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_torch(name):
    operator, args, options = CASES[name]
    expected, found = operator(*args, **options), rewritten()[operator](*args, **options)
    for one, other in zip(expected, found, strict=True) if isinstance(expected, (list, tuple)) else [(expected, found)]:
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (aten.gelu.default, (X,)),
        (aten.repeat_interleave.self_int, (X, 2)),
        (aten.scatter_reduce.two, (WHOLE, -1, INDEX, WHOLE, "sum")),
        (aten.scatter_reduce.two, (WHOLE, 1, INDEX % 7, WHOLE, "amax")),
    ],
)
def test_leaves_what_is_not_its_own(operator, args):
    assert rewritten()[operator](*args) is NotImplemented


def test_none_is_left_in_a_program():
    class Model(torch.nn.Module):
        def forward(self, x):
            first, second = x.chunk(2, dim=-1)
            x = torch.stack((-second, first), dim=-1).flatten(-2).unsqueeze(-1).repeat_interleave(2, dim=1)
            return torch.nn.functional.gelu(torch.cat(x.split((4, 6), dim=2), dim=2), approximate="tanh")

    rows = torch.export.Dim("rows")
    program = torch.export.export(Model(), (X,), dynamic_shapes=({0: rows},)).run_decompositions(rewritten())
    left = {node.target for node in program.graph.nodes} & set(rewritten())
    assert not left
    torch.testing.assert_close(program.module()(X[:2]), Model()(X[:2]), atol=1e-6, rtol=1e-6)
