"""Whole graphs of every family: torch.compile(fullgraph=True) and torch.export with dynamic shapes, padded or not."""

import pytest
import torch
from models.grid import FAMILIES, assert_same, cases, gradients, padded, real, tokens, typical_heads


# fp32: a compiler may fuse and reorder sums
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def over_cases() -> list:
    """With `make test-full` one attention a variant, in turn, and each with the typical one; else the typical under one.

    A graph is the variant's; which attention stands in it hardly matters, and compiling all pairs would take hours.
    """
    made = []
    for case in cases():
        family, name, _ = case.values
        in_turn, is_typical = not case.marks, name == FAMILIES[family].typical[-1]
        if in_turn or is_typical:
            marks = [] if in_turn and is_typical else [pytest.mark.full]
            made.append(pytest.param(*case.values, id=case.id, marks=marks))
    return made


def over_heads() -> list:
    """Those of the typical variants; the plain run takes the language models."""
    return [
        pytest.param(*case.values, id=case.id, marks=[] if case.values[2] == "text" else [pytest.mark.full])
        for case in typical_heads()
    ]


def without_cache(family: str) -> dict:
    return {"use_cache": False} if FAMILIES[family].is_causal else {}


def batch_of(lengths) -> dict:
    """Padded on the left, which is the harder."""
    return padded([{"input_ids": tokens(B=1, T=n, seed=n)[0]} for n in lengths], "left")


@pytest.mark.parametrize(("family", "name", "attention"), over_cases())
@torch.no_grad()
def test_fullgraph_is_the_same(family, name, attention):
    torch._dynamo.reset()
    head = FAMILIES[family].heads["text"]
    model = FAMILIES[family].make("text", attention, **FAMILIES[family].variants[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = batch_of((13, 7))
    for inputs in ({"input_ids": tokens()}, batch):
        mask = inputs.get("attention_mask")
        expected = real(model(**inputs, **without_cache(family)), head, mask)
        got = real(compiled(**inputs, **without_cache(family)), head, mask)
        torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.mark.parametrize("masked", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(("family", "name", "attention"), over_cases())
@torch.no_grad()
def test_export_holds_for_other_shapes(family, name, attention, masked):
    head = FAMILIES[family].heads["text"]
    model = FAMILIES[family].make("text", attention, **FAMILIES[family].variants[name])
    any_size = torch.export.Dim.DYNAMIC
    inputs, other = batch_of((13, 7)), batch_of((17, 9, 11))
    if not masked:
        inputs, other = {"input_ids": tokens()}, {"input_ids": tokens(B=3, T=17)}
    program = torch.export.export(
        model,
        (),
        inputs | without_cache(family),
        dynamic_shapes={key: {0: any_size, 1: any_size} for key in inputs} | dict.fromkeys(without_cache(family)),
        strict=False,
    )
    got = program.module()(**other, **without_cache(family))
    expected = model(**other, **without_cache(family))
    mask = other.get("attention_mask")
    torch.testing.assert_close(real(got, head, mask), real(expected, head, mask), **TOLERANCE)


@pytest.mark.parametrize(("family", "name", "head"), over_heads())
def test_compiled_training_is_the_same(family, name, head):
    torch._dynamo.reset()
    model = FAMILIES[family].make(head, "hfx_tiled", **FAMILIES[family].variants[name]).train()
    batch = padded(FAMILIES[family].documents(head)) | without_cache(family)
    results = []
    for function in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        function(**batch).loss.backward()
        results.append(gradients(model))
    assert_same(*results)
