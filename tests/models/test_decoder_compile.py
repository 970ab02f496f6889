"""Whole graphs: torch.compile(fullgraph=True) and torch.export with dynamic shapes, for every variant and attention."""

import pytest
import torch
from models.decoder_grid import CASES, make_model, tokens


# fp32: a compiler may fuse and reorder sums
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
# the short form: the plain decoder, and the variants with most mechanisms in them; `make test-full` runs all
SHORT = ("llama (", "local and global", "relative bias", "longrope (sdpa)", "dynamic (hfx_tiled)")

over_cases = pytest.mark.parametrize(
    ("options", "attention"),
    [
        pytest.param(*case, id=name, marks=[] if name.startswith(SHORT) else [pytest.mark.full])
        for name, case in CASES.items()
    ],
)


@over_cases
@torch.no_grad()
def test_fullgraph_is_the_same(options, attention):
    torch._dynamo.reset()
    model, ids = make_model(attention, **options), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, **TOLERANCE)


@over_cases
@torch.no_grad()
def test_export_holds_for_other_shapes(options, attention):
    model = make_model(attention, **options)
    any_size = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model,
        (),
        {"input_ids": tokens(), "use_cache": False},
        dynamic_shapes={"input_ids": {0: any_size, 1: any_size}, "use_cache": None},
        strict=False,
    )
    other = tokens(B=3, T=17, seed=1)
    torch.testing.assert_close(
        program.module()(input_ids=other, use_cache=False).logits, model(other, use_cache=False).logits, **TOLERANCE
    )


def test_compiled_training_is_the_same():
    torch._dynamo.reset()
    model, ids = make_model("sdpa").train(), tokens()
    results = []
    for function in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        function(ids, labels=ids, use_cache=False).loss.backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-5, rtol=1e-4)
