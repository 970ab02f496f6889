"""Gradients of every head over the whole grid: documents one by one = in a batch padded on either side = packed = with
their padding computed = checkpointed, whatever the attention."""

import pytest
import torch
from models.grid import (
    ALL_FAMILIES as FAMILIES,
)
from models.grid import (
    LOSS,
    alone,
    assert_same,
    attentions_for,
    gradients,
    num_items,
    packed,
    packed_in_pairs,
    padded,
    trained_heads,
)


def over_all_heads() -> list:
    """Parameters (family, name of a variant, head, attention): all with `make test-full`; else one head and attention a
    variant, in turn, and all heads of the typical ones."""
    made = []
    for family, entry in FAMILIES.items():
        heads = trained_heads(family)
        for i, (name, options) in enumerate(entry.variants.items()):
            able = attentions_for(options)
            for j, head in enumerate(heads):
                for k, attention in enumerate(able):
                    # each head meets each attention
                    plain = k == (i + j) % len(able) and (j == i % len(heads) or name in entry.typical)
                    marks = [] if plain else [pytest.mark.full]
                    case = f"{family}: {head}, {name} ({attention})"
                    made.append(pytest.param(family, name, head, attention, id=case, marks=marks))
    return made


def make(family: str, name: str, head: str, attention: str):
    """In training mode; nothing is dropped."""
    model = FAMILIES[family].make(head, attention, **FAMILIES[family].variants[name])
    return model.to(FAMILIES[family].gradients_in).train()


def ways(model, documents: list[dict], packs: bool, total: int):
    """The step whichever way: what it is called, and the losses that it is the sum of."""
    for side in ("right", "left"):
        batch = padded(documents, side)
        yield f"padded {side}", [batch]
        if getattr(model.config, "padding_free", False):
            model.config.padding_free = False
            yield f"padded {side}, padding computed", [batch]
            model.config.padding_free = True
    halves = [documents[:1], documents[1:]]
    yield "two micro-batches", [padded(half) | {"num_items_in_batch": total} for half in halves]
    if packs:
        yield "packed", [packed(documents)]
        yield "packed in two rows", [packed_in_pairs(documents)]
        yield "packed in two micro-batches", [packed(half) | {"num_items_in_batch": total} for half in halves]


@pytest.mark.parametrize(("family", "name", "head", "attention"), over_all_heads())
def test_every_way(family, name, head, attention):
    documents = FAMILIES[family].documents(head)
    packs, total = FAMILIES[family].heads[head].packs, num_items(documents)
    reference = make(family, name, head, "eager")
    expected_loss = 0.0
    for document in documents:
        loss = reference(**alone(document), num_items_in_batch=total).loss
        loss.backward()
        expected_loss += loss.item()
    expected = gradients(reference)

    model = make(family, name, head, attention)
    for checkpointed in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if checkpointed is not None:
            model.gradient_checkpointing_enable(checkpointed)
        for way, batches in ways(model, documents, packs, total):
            losses = [model(**batch).loss for batch in batches]
            for loss in losses:
                loss.backward()
            case = f"{way}, checkpointed {checkpointed}"
            torch.testing.assert_close(
                sum(loss.item() for loss in losses), expected_loss, **LOSS, msg=lambda m, c=case: f"{c}: {m}"
            )
            assert_same(gradients(model), expected, case)


@pytest.mark.parametrize("extra", [{}, {"label_smoothing": 0.1}, {"z_loss_weight": 1e-2}], ids=str)
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, entry in FAMILIES.items() for name in entry.typical]
)
def test_chunked_loss_equals_the_loss_of_whole_logits(family, name, extra):
    documents = FAMILIES[family].documents("text")
    results = []
    for skip_logits in (True, False):
        model = make(family, name, "text", "hfx_tiled")
        out = model(**padded(documents), skip_logits=skip_logits, **extra)
        assert (out.logits is None) == skip_logits
        out.loss.backward()
        results.append((out.loss.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], **LOSS)
    assert_same(results[0][1], results[1][1])
