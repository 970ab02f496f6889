"""Gradients under every head: whole batch = accumulated = packed = checkpointed, the same under every attention."""

import pytest
import torch
from models.encoder_decoder_grid import VARIANTS, attentions_for, make_model, one_attention_each, tokens

from hf_ext.models import (
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
)


# fp32: losses of order 5, gradients of order 0.1 to 1, summed in another order
LOSS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 2e-5, "rtol": 1e-4}
DOUBLE = {"atol": 1e-10, "rtol": 1e-8}  # fp64, where rounding is far below any other difference
LENGTHS = (13, 9, 6, 11)  # of the sources
TEXT_LENGTHS = (5, 10, 8, 3)

HEADS = {
    "text": HfxEncoderDecoderForConditionalGeneration,
    "classes": HfxEncoderDecoderForSequenceClassification,
    "answers": HfxEncoderDecoderForQuestionAnswering,
}


def batch(head: str, side: str = "right") -> tuple[dict, int]:
    """Padded rows, and how many of their labels are scored."""
    ids, texts = tokens(B=4, T=13), tokens(B=4, T=10, seed=1)
    mask = (torch.arange(13) < torch.tensor(LENGTHS)[:, None]).long()
    labels = texts.masked_fill(torch.arange(10) >= torch.tensor(TEXT_LENGTHS)[:, None], -100)
    labels[1, 3:5] = -100  # not scored, and not padding
    if side == "left":
        ids, mask, labels = (tensor.flip(-1) for tensor in (ids, mask, labels))
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if head == "text":
        return inputs | {"labels": labels}, int((labels != -100).sum())
    if head == "classes":
        return inputs | {"labels": torch.tensor([0, 2, 1, 2])}, 4
    # the last row's answer isn't there
    return inputs | {"start_positions": torch.tensor([1, 0, 3, 13]), "end_positions": torch.tensor([4, 8, 5, 13])}, 3


def packed() -> dict:
    """The sources and texts of `batch("text")`, in two rows, without padding."""
    inputs, _ = batch("text")
    result = {}
    for name, lengths in (("input_ids", LENGTHS), ("labels", TEXT_LENGTHS)):
        documents = [inputs[name][row, :n] for row, n in enumerate(lengths)]
        result[name] = torch.cat(documents)[None]
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        result["position_ids" if name == "input_ids" else "decoder_position_ids"] = positions
    return result


def gradients(model) -> dict:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert max(g.abs().max() for g in found.values()) > 0.02  # not a flat place where all agree
    return found


def assert_same(got: dict, expected: dict, **tolerance) -> None:
    tolerance = tolerance or GRADIENT
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def whole(model, head: str, **options) -> tuple[float, dict]:
    inputs, _ = batch(head)
    loss = model(**inputs, **options).loss
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("options", "attention"), one_attention_each())
def test_whole_equals_accumulated_equals_packed_equals_checkpointed(head, options, attention):
    if head != "text" and "encoder_vocab_size" in options:
        with pytest.raises(ValueError, match="has both stacks read the same tokens"):
            make_model(attention, model_class=HEADS[head], **options)
        return
    model = make_model(attention, model_class=HEADS[head], num_labels=3, **options).train().double()
    loss, expected = whole(model, head)
    assert expected.keys() == {name for name, _ in model.named_parameters()}

    inputs, scored = batch(head)
    total = 0.0
    for row in range(4):
        part = model(**{k: v[row : row + 1] for k, v in inputs.items()}, num_items_in_batch=scored).loss
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(model), expected)

    if head == "text":
        part = model(**packed())
        part.loss.backward()
        assert part.loss.item() == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(model), expected)

    for reentrant in (False, True):  # asked for the latter, the model takes the former: see `_why_not_reentrant`
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_same(whole(model, head)[1], expected)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_attention_gives_the_same_loss_and_gradients(options):
    for side in ("right", "left"):
        inputs, _ = batch("text", side)
        results = {}
        for attention in attentions_for(options):
            for padding_free in (True, False):
                model = make_model(attention, **options, padding_free=padding_free).train().double()
                out = model(**inputs, skip_logits=False)
                out.loss.backward()
                results[attention, padding_free] = (out.logits[inputs["labels"] != -100].detach(), gradients(model))
        logits, expected = results["eager", False]
        for got_logits, got in results.values():
            torch.testing.assert_close(got_logits, logits, **DOUBLE)
            assert_same(got, expected, **DOUBLE)


@pytest.mark.parametrize("extra", [{}, {"label_smoothing": 0.1}, {"z_loss_weight": 1e-2}], ids=str)
def test_chunked_loss_equals_the_loss_of_whole_logits(extra):
    results = []
    for skip_logits in (True, False):
        model = make_model(final_logit_softcapping=5.0, output_multiplier=0.5, lm_head_bias=True).train()
        results.append(whole(model, "text", skip_logits=skip_logits, **extra))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert_same(results[0][1], results[1][1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_labels_are_the_texts_alone(side):
    """Also where a tokenizer pads labels on the left: a text begins after the start token wherever it stands."""
    model = make_model(position_embedding_type="learned").train()
    inputs, scored = batch("text", side)
    loss = model(**inputs).loss.item()
    total = 0.0
    for row in range(4):
        real = inputs["attention_mask"][row].bool()
        seen = (inputs["labels"][row] != -100).nonzero().flatten()
        labels = inputs["labels"][row, seen[0] : seen[-1] + 1][None]
        part = model(inputs["input_ids"][row, real][None], labels=labels, num_items_in_batch=scored)
        total += part.loss.item()
    assert total == pytest.approx(loss, rel=1e-5)


def test_labels_are_what_follows_the_start():
    model = make_model(decoder_start_token_id=7)
    labels = torch.tensor([[11, 12, 13, -100], [21, -100, 23, 24], [-100, -100, 31, 32]])
    got = model.prepare_decoder_input_ids_from_labels(labels)
    assert got.tolist() == [[7, 11, 12, 0], [7, 21, 0, 23], [0, 0, 7, 31]]
    source = tokens(B=3)
    expected = torch.nn.functional.cross_entropy(
        model(source[:1], decoder_input_ids=got[:1, :3]).logits[0], labels[0, :3]
    )
    assert model(source[:1], labels=labels[:1]).loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_stock_label_smoother_and_collator():
    """transformers' `DataCollatorForSeq2Seq` asks for the decoder's ids; its `LabelSmoother` takes the logits."""
    from transformers.trainer_pt_utils import LabelSmoother

    model = make_model()
    inputs, _ = batch("text")
    ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    out = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], decoder_input_ids=ids)
    smoothed = LabelSmoother(0.1)(out, inputs["labels"])
    assert model(**inputs, label_smoothing=0.1).loss.item() == pytest.approx(smoothed.item(), rel=1e-5)


# sinks are refused on a CPU: tests/models/test_decoder_flex.py
@pytest.mark.parametrize("name", [name for name in VARIANTS if "attention_sinks" not in VARIANTS[name]])
@torch.no_grad()
def test_flex_attention_gives_the_same(name):
    inputs, _ = batch("text")
    results = []
    for attention in ("eager", "flex_attention"):
        model = make_model(attention, **VARIANTS[name])
        padded = model(**inputs).logits[inputs["labels"] != -100]
        together = model(**packed(), skip_logits=False).logits
        text = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=4)
        results.append((padded, together, text))
    torch.testing.assert_close(results[1][0], results[0][0], **LOSS)
    torch.testing.assert_close(results[1][1], results[0][1], **LOSS)
    assert torch.equal(results[1][2], results[0][2])


def test_batches_of_the_collator_packed_and_padded():
    from hf_ext.objectives import SequenceToSequenceCollator

    collate = SequenceToSequenceCollator(vocab_size=97, pad_token_id=0, decoder_start_token_id=0)
    inputs, _ = batch("text")
    rows = [
        {"input_ids": inputs["input_ids"][row, :n].tolist(), "labels": inputs["labels"][row, :m].tolist()}
        for row, (n, m) in enumerate(zip(LENGTHS, TEXT_LENGTHS, strict=True))
    ]
    together = [
        {
            "input_ids": a["input_ids"] + b["input_ids"],
            "position_ids": [*range(len(a["input_ids"])), *range(len(b["input_ids"]))],
            "labels": a["labels"] + b["labels"],
            "decoder_position_ids": [*range(len(a["labels"])), *range(len(b["labels"]))],
        }
        for a, b in (rows[:2], rows[2:])
    ]
    model, results = make_model().train().double(), []
    for each in (rows, together):
        loss = model(**collate(each)).loss
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert_same(results[1][1], results[0][1])


@pytest.mark.parametrize("name", ["rope", "BART: learned positions", "relative bias, sliding and global"])
@torch.no_grad()
def test_packed_texts_are_answered_alone(name):
    """Scores of every token; a loss is refused, for there is one answer a row."""
    model = make_model("sdpa", model_class=HfxEncoderDecoderForQuestionAnswering, **VARIANTS[name])
    texts = [tokens(B=1, T=n, seed=n) for n in LENGTHS]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    got = model(torch.cat(texts, dim=1), position_ids=positions)
    for side in ("start_logits", "end_logits"):
        expected = torch.cat([model(text)[side] for text in texts], dim=1)
        torch.testing.assert_close(got[side], expected, atol=2e-5, rtol=1e-5)
    spans = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    with pytest.raises(ValueError, match="row 0 holds several documents, but there is one answer a row"):
        model(torch.cat(texts, dim=1), position_ids=positions, **spans)
