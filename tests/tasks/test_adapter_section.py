"""Adapters in a recipe: what trains, what stays, in full precision and over quantized weights; and what is refused."""

import pytest
import torch
from models.decoder_grid import make_model, tokens
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_ext.models import (
    HfxDecoderForSequenceClassification,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
)
from hf_ext.tasks.adapter_section import AdapterArguments, add_adapter


pytest.importorskip("peft")
pytest.importorskip("optimum.quanto")
# mean error of the logits over the largest: weights in 8 bits are right to 1 part in 256 of a row's largest
INT8_LOGITS = 0.02
STEPS = 3


def train(model, batch):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("method", "quantize"), [("lora", None), ("lora", "int8"), ("lora", "int4"), ("dora", None)])
def test_the_adapter_alone_trains(method, quantize):
    base = make_model()
    untouched = {name: weight.clone() for name, weight in base.state_dict().items()}
    ids = tokens(B=4, T=12, seed=1)
    logits = base(ids).logits
    model = add_adapter(base, AdapterArguments(method=method, r=4, quantize=quantize), AutoModelForCausalLM)
    if quantize == "int8":
        assert (model(ids).logits - logits).abs().mean() <= INT8_LOGITS * logits.abs().max()
    elif quantize is None:
        torch.testing.assert_close(model(ids).logits, logits)
    held = {name: _values(p) for name, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, {"input_ids": ids, "labels": ids})
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(_values(parameter), held[name]), name
    if quantize is None:
        merged = model.merge_and_unload()
        for name, weight in merged.state_dict().items():
            is_adapted = any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down"))
            assert is_adapted or torch.equal(weight, untouched[name]), name


def _values(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.dequantize().detach().clone() if hasattr(parameter, "dequantize") else parameter.detach().clone()


def test_quantized_weights_take_less():
    sizes = {}
    for quantize in (None, "int8", "int4"):
        model = make_model(hidden_size=256, num_attention_heads=4, head_dim=64)
        held = add_adapter(model, AdapterArguments(method="lora", quantize=quantize), AutoModelForCausalLM)
        block = held.base_model.model.model.layers[0]
        weights = [layer.weight for name, layer in block.named_modules() if name.endswith("base_layer")]
        sizes[quantize] = sum(_bytes(weight) for weight in weights)
    assert sizes["int8"] < 0.3 * sizes[None]
    assert sizes["int4"] < 0.2 * sizes[None]  # with a scale and a shift for each group


def _bytes(weight: torch.Tensor) -> int:
    inner = [getattr(weight, name) for name in ("_data", "_scale", "_shift") if hasattr(weight, name)]
    return sum(_bytes(t) for t in inner) if inner else weight.numel() * weight.element_size()


@pytest.mark.parametrize(
    ("model_class", "auto_class"),
    [
        (HfxEncoderForSequenceClassification, AutoModelForSequenceClassification),
        (HfxEncoderForTokenClassification, AutoModelForTokenClassification),
        (HfxEncoderForQuestionAnswering, AutoModelForQuestionAnswering),
        (HfxDecoderForSequenceClassification, AutoModelForSequenceClassification),
        (HfxEncoderDecoderForSequenceClassification, AutoModelForSequenceClassification),
    ],
)
def test_a_new_head_trains_whole(model_class, auto_class):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 2}
    base = model_class(model_class.config_class(**sizes))
    on_the_body = {name for name, _ in base.named_parameters() if not name.startswith(f"{base.base_model_prefix}.")}
    model = add_adapter(base, AdapterArguments(method="lora"), auto_class)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    whole = {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in trained}
    assert on_the_body
    assert on_the_body <= whole


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_a_task_adds_are_trained_and_no_others(tied):
    model = make_model(tie_word_embeddings=tied)
    known = model.config.vocab_size
    model.resize_token_embeddings(known + 2)
    before = model.get_input_embeddings().weight.detach().clone()
    adapted = add_adapter(model, AdapterArguments(method="lora"), AutoModelForCausalLM, range(known, known + 2))
    ids = torch.tensor([[3, known, 5, 7, known + 1, 9]])
    train(adapted, {"input_ids": ids, "labels": ids})
    scores = adapted.eval()(ids).logits
    merged = adapted.merge_and_unload()
    after = merged.get_input_embeddings().weight
    assert torch.equal(after[:known], before[:known])
    assert (after[known:] != before[known:]).any(dim=1).all()
    torch.testing.assert_close(merged.eval()(ids).logits, scores, rtol=1e-4, atol=1e-5)


def test_an_adapter_alone_has_no_place_for_new_tokens():
    for changes, said in (({"merge": False}, "merge=False"), ({"quantize": "int4"}, "quantize='int4'")):
        arguments = AdapterArguments(method="lora", **changes)
        with pytest.raises(ValueError, match=f"^adapter.{said}: .* no embeddings for tokens that the task adds .2."):
            add_adapter(make_model(), arguments, AutoModelForCausalLM, range(97, 99))


def test_without_a_method_it_is_the_model_itself():
    model = make_model()
    assert add_adapter(model, AdapterArguments(), AutoModelForCausalLM) is model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"quantize": "int4"}, "adapter.quantize='int4': has no effect without adapter.method"),
        ({"method": "lora", "quantize": "int3"}, "must be one of None, int8, int4"),
        ({"method": "lora", "r": 0}, "must be at least 1"),
        ({"method": "lora", "alpha": 0.0}, "must be above 0"),
        ({"method": "lora", "dropout": 1.0}, "must be at least 0 and below 1"),
        ({"method": "lora", "quantize": "int8", "merge": True}, "can't add into int8 weights"),
        ({"method": "dora", "quantize": "int8"}, "adapter.method='dora': can't take the norms of int8 weights"),
    ],
    ids=str,
)
def test_nonsense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        AdapterArguments(**given)


def test_what_has_no_adapters_is_named():
    with pytest.raises(ValueError, match="not offered for AutoModelForMultipleChoice"):
        add_adapter(make_model(), AdapterArguments(method="lora"), AutoModelForMultipleChoice)
    with pytest.raises(ValueError, match=r"adapter\.target_modules=\['nowhere'\]"):
        add_adapter(make_model(), AdapterArguments(method="lora", target_modules=["nowhere"]), AutoModelForCausalLM)
