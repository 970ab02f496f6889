"""Whole graphs: torch.compile(fullgraph=True) and torch.export with dynamic shapes."""

import pytest
import torch
from models.encoder_decoder_grid import make_model, one_attention_each, tokens


# fp32: a compiler may fuse and reorder sums
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
# the short form; `make test-full` runs one attention a variant, in turn: a graph is the variant's
SHORT = ("rope (sdpa)", "relative bias, sliding and global (hfx_tiled)")

over_cases = pytest.mark.parametrize(
    ("options", "attention"),
    [
        pytest.param(*case.values, id=case.id, marks=[] if case.id in SHORT else [pytest.mark.full])
        for case in one_attention_each()
        if not case.marks or case.id in SHORT
    ],
)


@over_cases
@torch.no_grad()
def test_fullgraph_is_the_same(options, attention):
    torch._dynamo.reset()
    model = make_model(attention, **options)
    mask = (torch.arange(13) < torch.tensor([[13], [9]])).long()
    inputs = {"input_ids": tokens() * mask, "attention_mask": mask, "decoder_input_ids": tokens(T=6, seed=1)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, expected = (each(**inputs, use_cache=False).logits for each in (compiled, model))
    torch.testing.assert_close(got, expected, **TOLERANCE)


@over_cases
@torch.no_grad()
def test_export_holds_for_other_shapes(options, attention):
    model, any_size = make_model(attention, **options), torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model,
        (),
        {"input_ids": tokens(), "decoder_input_ids": tokens(T=6), "use_cache": False},
        dynamic_shapes={
            "input_ids": {0: any_size, 1: any_size},
            "decoder_input_ids": {0: any_size, 1: any_size},
            "use_cache": None,
        },
        strict=False,
    )
    other = {"input_ids": tokens(B=3, T=17, seed=1), "decoder_input_ids": tokens(B=3, T=9, seed=2), "use_cache": False}
    torch.testing.assert_close(program.module()(**other).logits, model(**other).logits, **TOLERANCE)


def test_compiled_training_is_the_same():
    torch._dynamo.reset()
    model, source, labels = make_model("sdpa").train(), tokens(), tokens(T=6, seed=1)
    results = []
    for function in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        function(source, labels=labels).loss.backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-5, rtol=1e-4)
