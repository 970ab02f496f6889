"""Gradients under every head, over the whole grid: whole batch = accumulated = packed = checkpointed."""

import pytest
import torch
from models.decoder_grid import CASES, make_config, make_model, one_attention_each, tokens
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
)

import hf_ext  # noqa: F401  registers the Auto classes


# fp32: losses of order 5, gradients of order 0.1 to 1, summed in another order
LOSS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}
LENGTHS = (13, 9, 6, 11)

HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
}
over_cases = pytest.mark.parametrize(("options", "attention"), one_attention_each(CASES))


def make(head: str, attention: str, options: dict):
    """In training mode, with the grid's weights in the body."""
    torch.manual_seed(0)
    model = HEADS[head].from_config(make_config(num_labels=3, **options), attn_implementation=attention).train()
    model.model.load_state_dict(make_model(attention, **options).model.state_dict())
    return model


def batch(head: str) -> tuple[dict, int]:
    """Rows of 13, 9, 6 and 11 tokens, padded on the right, and how many of their labels are scored."""
    ids = tokens(B=4, T=13)
    mask = (torch.arange(13) < torch.tensor(LENGTHS)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if head == "sequence":
        return inputs | {"labels": torch.tensor([0, 2, 1, 2])}, 4
    if head == "token":
        return inputs | {"labels": (ids % 3).masked_fill(mask == 0, -100)}, sum(LENGTHS)
    # the last row's answer isn't there
    return inputs | {"start_positions": torch.tensor([1, 0, 3, 13]), "end_positions": torch.tensor([4, 8, 5, 13])}, 3


def gradients(model) -> dict:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert max(g.abs().max() for g in found.values()) > 0.05  # not a flat place where all agree
    return found


def assert_same(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("head", HEADS)
@over_cases
def test_whole_equals_accumulated_equals_checkpointed(head, options, attention):
    model = make(head, attention, options)
    whole, scored = batch(head)
    loss = model(**whole).loss
    loss.backward()
    expected = gradients(model)

    total = 0.0
    for row, length in enumerate(LENGTHS):  # each without its padding
        part = {name: value[row : row + 1] for name, value in whole.items()}
        part = {name: value[:, :length] if value.ndim == 2 else value for name, value in part.items()}
        part_loss = model(**part, num_items_in_batch=scored).loss
        part_loss.backward()
        total += part_loss.item()
    torch.testing.assert_close(total, loss.item(), **LOSS)
    assert_same(gradients(model), expected)

    model.gradient_checkpointing_enable()
    model(**whole).loss.backward()
    assert_same(gradients(model), expected)


@over_cases
def test_packed_token_classes(options, attention):
    model = make("token", attention, options)
    whole, _ = batch("token")
    model(**whole).loss.backward()
    expected = gradients(model)
    real = whole["attention_mask"].bool()
    packed = {name: whole[name][real][None] for name in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(T) for T in LENGTHS])[None]
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**packed).loss.backward()
        assert_same(gradients(model), expected)


@over_cases
def test_padding_free_language_model(options, attention):
    """One row by transformers' own collator; rows of two documents; and with checkpoints."""
    model = make_model(attention, **options).train()
    documents = [tokens(B=1, T=T, seed=T)[0] for T in LENGTHS]
    scored = sum(LENGTHS) - len(LENGTHS)
    for ids in documents:
        loss = model(ids[None], labels=ids[None], num_items_in_batch=scored).loss
        loss.backward()
    expected = gradients(model)

    one_row = DataCollatorWithFlattening()([{"input_ids": ids.tolist()} for ids in documents])
    rows = []
    for pair in (documents[:2], documents[2:]):
        ids, positions = torch.cat(pair), torch.cat([torch.arange(len(d)) for d in pair])
        labels = ids.masked_fill(positions == 0, -100)
        rows.append({"input_ids": ids[None], "labels": labels[None], "position_ids": positions[None]})
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**one_row).loss.backward()
        assert_same(gradients(model), expected)
        for row in rows:
            model(**row, num_items_in_batch=scored).loss.backward()
        assert_same(gradients(model), expected)
