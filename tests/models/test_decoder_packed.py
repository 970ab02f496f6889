"""Packed rows under every head: one document alone = in a packed row = padding-free; what can't be packed is refused."""

import pytest
import torch
from models.decoder_grid import make_config, make_model, tokens
from models.grid import assert_same, gradients
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DataCollatorWithFlattening,
    DynamicCache,
)

import hf_ext  # noqa: F401  registers the Auto classes


# fp32: the same sums in another order
FP32 = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (7, 4, 6)


def make(auto_class, attention="sdpa"):
    torch.manual_seed(0)
    return auto_class.from_config(make_config(num_labels=3), attn_implementation=attention).train()


def documents() -> list[dict]:
    """Tokens, and a class for each of them."""
    rows = [tokens(B=1, T=T, seed=T)[0] for T in LENGTHS]
    return [{"input_ids": row.tolist(), "labels": (row % 3).tolist()} for row in rows]


def packed(rows: int = 1) -> dict:
    """All documents in each row."""
    ids = torch.cat([torch.tensor(d["input_ids"]) for d in documents()])
    return {
        "input_ids": ids.expand(rows, -1),
        "position_ids": torch.cat([torch.arange(T) for T in LENGTHS]).expand(rows, -1),
    }


@pytest.mark.parametrize("extra", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "hfx_tiled"])
def test_padding_free_language_model(attention, extra):
    """By transformers' own collator, all documents in one row."""
    model = make_model(attention).train()
    features = [{"input_ids": d["input_ids"]} for d in documents()]
    scored = sum(LENGTHS) - len(LENGTHS)
    for feature in features:
        ids = torch.tensor([feature["input_ids"]])
        model(ids, labels=ids, num_items_in_batch=scored).loss.backward()
    expected = gradients(model)
    batch = DataCollatorWithFlattening(**extra)(features)
    assert batch["input_ids"].shape == (1, sum(LENGTHS))
    model(**batch).loss.backward()
    assert_same(gradients(model), expected)


def refused(make_call) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        make_call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rows", [1, 2])
def test_one_prediction_for_several_documents_is_refused(rows):
    model = make(AutoModelForSequenceClassification)
    message = "position_ids: row 0 holds several documents, but there is one prediction a row; give one document a row"
    assert refused(lambda: model(**packed(rows))) == message
    spans = {"start_positions": torch.tensor([1] * rows), "end_positions": torch.tensor([2] * rows)}
    model = make(AutoModelForQuestionAnswering)
    assert refused(lambda: model(**packed(rows), **spans)) == message.replace("prediction", "answer")


@torch.no_grad()
def test_scores_of_answers_are_by_document():
    """Without a loss nothing competes."""
    model = make(AutoModelForQuestionAnswering).eval()
    expected = torch.cat([model(torch.tensor([d["input_ids"]])).start_logits for d in documents()], dim=1)
    torch.testing.assert_close(model(**packed()).start_logits, expected, **FP32)


@torch.no_grad()
def test_positions_of_one_document_are_not_refused():
    """Padded on either side, as collators and generate give them."""
    model = make(AutoModelForSequenceClassification).eval()
    ids = tokens(B=1, T=9)
    expected = model(ids).logits
    torch.testing.assert_close(model(ids, position_ids=torch.arange(9)[None]).logits, expected, **FP32)
    zeros = torch.zeros(1, 3, dtype=torch.long)
    for order in (lambda a, b: (a, b), lambda a, b: (b, a)):
        padded = torch.cat(order(ids, zeros), dim=1)
        mask = (padded != 0).long()
        positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)
        got = model(padded, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(got, expected, **FP32)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"attention_mask": torch.ones(2, sum(LENGTHS))}, "attention_mask lets them see each other"),
        ({"past_key_values": DynamicCache()}, "past_key_values holds one document a row; leave it out"),
    ],
    ids=["mask", "cache"],
)
def test_documents_that_would_see_each_other_are_refused(extra, message):
    inputs = packed(rows=2)
    assert f"position_ids: row 0 holds several documents, but {message}" in refused(
        lambda: make_model()(**inputs, **extra)
    )


def test_lengths_without_positions_are_refused():
    batch = DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True)(documents())
    assert "cu_seq_lens_q: given without position_ids" in refused(lambda: make_model()(**batch))
