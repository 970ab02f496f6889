"""One number whichever way it is computed: a document alone = padded on either side = packed = under a ready mask = by every
attention = with and without its padding's share, over the whole grid."""

import pytest
import torch
from models.grid import (
    ALL_FAMILIES as FAMILIES,
)
from models.grid import (
    ATTENTIONS,
    alone,
    asked,
    cases,
    mask_of,
    num_items,
    packed,
    packed_in_pairs,
    padded,
    real,
    scores,
    typical_heads,
)


# logits in bf16 against the same weights' in fp32, times what eager is off: the others round less often, but elsewhere
AS_GOOD_AS_EAGER = 2.0
over_cases = pytest.mark.parametrize(("family", "name", "attention"), cases("flex_attention", families=FAMILIES))
over_heads = pytest.mark.parametrize(("family", "name", "head"), typical_heads(FAMILIES))


def make(family: str, name: str, attention: str, head: str = "text"):
    return FAMILIES[family].make(head, attention, **FAMILIES[family].variants[name])


def ready_masks(family: str, options: dict, real_tokens: torch.Tensor) -> list[torch.Tensor]:
    """By hand, for the padded batch (B, T): bool, and additive; none where layers differ in what they see, or a decoder sees
    another text too."""
    if len(set(options.get("layer_types", ""))) > 1 or FAMILIES[family].records:
        return []
    T = real_tokens.shape[1]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    near = distance.abs() < options.get("sliding_window", T)
    if FAMILIES[family].is_causal:
        near &= distance >= 0
    visible = (near & real_tokens[:, None].bool())[:, None]
    return [visible, torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)]


@over_cases
@torch.no_grad()
def test_every_way(family, name, attention):
    options = FAMILIES[family].variants[name]
    reference, model, head = make(family, name, "eager"), make(family, name, attention), FAMILIES[family].heads["text"]
    documents = [asked(d) for d in FAMILIES[family].documents()]
    expected = torch.cat([real(reference(**alone(d)), head) for d in documents])
    assert expected.std() > 0.3  # nor is the number any number

    def check(way: str, mask: torch.Tensor | None = None, **batch):
        torch.testing.assert_close(
            real(model(**batch), head, mask), expected, **FAMILIES[family].logits, msg=lambda m: f"{way}: {m}"
        )

    for side in ("right", "left"):
        batch = padded(documents, side)
        mask, own = mask_of(batch), batch["attention_mask"]
        check(side, mask, **batch)
        check(f"{side}, bool", mask, **batch | {"attention_mask": own.bool()})
        others = {name: value for name, value in batch.items() if name != "input_ids"}
        check(f"{side}, embeddings", mask, inputs_embeds=embedded(model, batch["input_ids"]), **others)
        positions = (own.cumsum(dim=-1) - 1).clamp(min=0)
        check(f"{side}, positions", mask, **batch, position_ids=positions)
        for ready in ready_masks(family, options, own):
            if attention != "flex_attention" or ready.dtype == torch.bool:
                ids = batch["input_ids"]
                check(f"{side}, ready {ready.dtype}", mask, input_ids=ids, attention_mask=ready, position_ids=positions)
        if hasattr(model.config, "padding_free"):
            model.config.padding_free = False
            check(f"{side}, padding computed", mask, **batch)
            model.config.padding_free = True
    check("packed", **packed(documents))
    check("packed in two rows", **packed_in_pairs(documents))


@over_heads
@torch.no_grad()
def test_every_head(family, name, head):
    """Loss and predictions, with as much padding as there may be."""
    entry = FAMILIES[family].heads[head]
    model = make(family, name, None, head)
    documents = FAMILIES[family].documents(head)
    total = num_items(documents)
    singly = [model(**alone(d), num_items_in_batch=total) for d in documents]
    expected, loss = torch.cat([real(out, entry) for out in singly]), sum(out.loss for out in singly)
    for side in ("right", "left"):
        batch = padded(documents, side)
        mask = mask_of(batch)
        for more in ({}, {"output_hidden_states": True}, {"num_items_in_batch": total}):
            out = model(**batch, **more)
            torch.testing.assert_close(real(out, entry, mask), expected, **FAMILIES[family].logits)
            torch.testing.assert_close(out.loss, loss, **FAMILIES[family].logits)
    if entry.reads_tokens:
        out = model(**packed(documents))
        torch.testing.assert_close(real(out, entry), expected, **FAMILIES[family].logits)
        if entry.packs:
            torch.testing.assert_close(out.loss, loss, **FAMILIES[family].logits)


def embedded(model, ids: torch.Tensor) -> torch.Tensor:
    return model.get_input_embeddings()(ids)


@pytest.mark.parametrize(("family", "name"), [(f, name) for f, entry in FAMILIES.items() for name in entry.typical])
@torch.no_grad()
def test_what_is_recorded(family, name):
    """Hidden states and weights of the layers, by token of the padded batch, asked for by argument or configuration."""
    documents = [asked(d) for d in FAMILIES[family].documents()]
    model, of = make(family, name, "eager", "body"), FAMILIES[family].records
    singly = [model(**alone(d), output_hidden_states=True, output_attentions=True) for d in documents]
    for side in ("right", "left"):
        batch = padded(documents, side)
        real_tokens = mask_of(batch).bool()
        by_argument = model(**batch, output_hidden_states=True, output_attentions=True)
        model.config.output_hidden_states = model.config.output_attentions = True
        configured = model(**batch)
        model.config.output_hidden_states = model.config.output_attentions = False
        for out in (by_argument, configured):
            for i, states in enumerate(out[of + "hidden_states"]):
                expected = torch.cat([alone_out[of + "hidden_states"][i][0] for alone_out in singly])
                torch.testing.assert_close(states[real_tokens], expected, **FAMILIES[family].logits)
            for i, weights in enumerate(out[of + "attentions"]):
                for row, (mask, alone_out) in enumerate(zip(real_tokens, singly, strict=True)):
                    got = weights[row][:, mask][:, :, mask]
                    torch.testing.assert_close(got, alone_out[of + "attentions"][i][0], **FAMILIES[family].logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_in_bf16_no_attention_is_worse_than_the_reference(family):
    """Against the same weights in fp32."""
    documents = [asked(d) for d in FAMILIES[family].documents()]
    off = {}
    for attention in ATTENTIONS:
        model = FAMILIES[family].make("text", attention, num_key_value_heads=2, qk_norm="head").bfloat16()
        exact = FAMILIES[family].make("text", "eager", num_key_value_heads=2, qk_norm="head")
        exact.load_state_dict(model.state_dict())
        batch = padded(documents)
        real_tokens = mask_of(batch).bool()
        expected = scores(exact(**batch))[real_tokens]
        off[attention] = max(
            (scores(model(**batch))[real_tokens] - expected).abs().max(),
            (scores(model(**packed(documents)))[0] - expected).abs().max(),
        )
    assert 0 < off["eager"] < 0.1 * expected.abs().max()
    assert all(error < AS_GOOD_AS_EAGER * off["eager"] for error in off.values()), off
