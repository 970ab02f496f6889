"""The encoder's heads in their pipelines, and what they refuse."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from hf_ext.data import train_tokenizer
from hf_ext.models import (
    HfxEncoderConfig,
    HfxEncoderForMultipleChoice,
    HfxEncoderForSequenceClassification,
    HfxEncoderModel,
    attention_report,
    attention_weights,
)


TEXTS = ["the quick brown fox jumps over the lazy dog", "a stirring , funny film", "so"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.25,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer():
    special = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True}
    return train_tokenizer(TEXTS * 4, vocab_size=330, model_max_length=64, **special)


def make(auto_class, tokenizer, **options):
    torch.manual_seed(0)
    config = HfxEncoderConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES, **options)
    return auto_class.from_config(config).eval()


def test_fill_mask(tokenizer):
    model = make(AutoModelForMaskedLM, tokenizer)
    text = "the quick<|mask|> fox"
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer)(text, top_k=3)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = model(ids).logits[ids == tokenizer.mask_token_id].softmax(-1)[0]
    assert [one["token"] for one in found] == probabilities.topk(3).indices.tolist()
    assert [one["score"] for one in found] == pytest.approx(probabilities.topk(3).values.tolist(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification(tokenizer, batch_size):
    model = make(AutoModelForSequenceClassification, tokenizer, num_labels=3)
    found = pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS, batch_size=batch_size, top_k=None)
    for text, labels in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        got = {label["label"]: label["score"] for label in labels}
        assert [got[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected.tolist(), rel=1e-4)


def test_token_classification(tokenizer):
    model = make(AutoModelForTokenClassification, tokenizer, num_labels=4)
    found = pipeline("token-classification", model=model, tokenizer=tokenizer)(TEXTS[0])
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        classes = model(**inputs).logits[0].argmax(-1).tolist()
    words = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    assert [(one["word"], one["entity"]) for one in found] == [
        (word, f"LABEL_{label}") for word, label in list(zip(words, classes, strict=True))[1:-1]
    ]


def test_features(tokenizer):
    model = make(AutoModel, tokenizer)
    found = pipeline("feature-extraction", model=model, tokenizer=tokenizer)(TEXTS[1], return_tensors=True)
    with torch.no_grad():
        torch.testing.assert_close(found, model(**tokenizer(TEXTS[1], return_tensors="pt")).last_hidden_state)


def test_answers_and_choices(tokenizer):
    model = make(AutoModelForQuestionAnswering, tokenizer)
    inputs = tokenizer("what jumps", TEXTS[0], return_tensors="pt")
    output = model(**inputs, start_positions=torch.tensor([4]), end_positions=torch.tensor([6]))
    starts, ends = output.start_logits.log_softmax(-1)[0, 4], output.end_logits.log_softmax(-1)[0, 6]
    torch.testing.assert_close(output.loss, -(starts + ends) / 2)
    model = make(AutoModelForMultipleChoice, tokenizer)
    rows = tokenizer(["what"] * 3, TEXTS, padding=True, return_tensors="pt")
    choices = {name: value[None] for name, value in rows.items()}
    output = model(**choices, labels=torch.tensor([1]))
    assert output.logits.shape == (1, 3)
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(-1)[0, 1])


@pytest.mark.parametrize("attention", ["eager", "sdpa", "hfx_tiled"])
def test_report_and_weights(tokenizer, attention):
    model = make(AutoModel, tokenizer, sliding_window=3, layer_types=["full_attention", "sliding_attention"])
    model.set_attn_implementation(attention)
    assert attention in str(attention_report(model))
    weights = attention_weights(model, TEXTS[0], tokenizer)
    T = len(weights.tokens)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    for layer, window in zip(weights.layers, (T, 3), strict=True):
        torch.testing.assert_close(layer.sum(-1), torch.ones(4, T))
        assert (layer[:, distance >= window] == 0).all()
        assert (layer[:, distance < window] > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier_pooling": "first"}, "classifier_pooling='first': must be one of cls, mean"),
        ({"classifier_activation": "tan"}, "classifier_activation='tan': must be one of .*did you mean 'tanh'"),
        ({"classifier_dropout": 1.0}, "classifier_dropout=1.0: must be at least 0 and below 1"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1: must be at least 0"),
        (
            {"block_type": "post_norm", "norm_before_first_layer": False},
            "norm_before_first_layer=False: block_type='post_norm' has no norm before its attention",
        ),
        ({"sinusoidal_interleave": False}, "sinusoidal_interleave=False: has no effect without"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: must divide hidden_size"),
        ({"layer_types": ["sliding_attention"] * 8}, "sliding_window=None: must be given where layer_types"),
    ],
)
def test_configurations_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HfxEncoderConfig(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input_ids, inputs_embeds: exactly one of them must be given"),
        ({"input_ids": [[5, 400]]}, "input_ids: token id 400 is outside the vocabulary"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "attention_mask: 1 columns for 2 tokens"),
        ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, "attention_mask: row 0 has no token"),
        ({"input_ids": [[5, 6]], "token_type_ids": [[0, 1]]}, "token_type_ids: this model has no segments"),
        ({"input_ids": [[5, 6]], "position_ids": [[0]]}, "position_ids: shape .* for 2 tokens"),
        (
            {"input_ids": [[5, 6]], "position_ids": [[0, 0]], "attention_mask": [[1, 1]]},
            "position_ids: row 0 holds several documents, but attention_mask lets them see each other",
        ),
    ],
)
def test_inputs_that_are_refused(inputs, message):
    torch.manual_seed(0)
    model = HfxEncoderModel(HfxEncoderConfig(vocab_size=330, **SIZES)).eval()
    with pytest.raises(ValueError, match=message):
        model(**{name: torch.tensor(value) for name, value in inputs.items()})


def test_heads_refuse_several_documents_and_flat_choices():
    config = HfxEncoderConfig(vocab_size=330, **SIZES)
    packed = {"input_ids": torch.tensor([[5, 6, 7]]), "position_ids": torch.tensor([[0, 1, 0]])}
    with pytest.raises(ValueError, match="row 0 holds several documents, but there is one prediction a row"):
        HfxEncoderForSequenceClassification(config)(**packed)
    with pytest.raises(ValueError, match=r"input_ids: shape \(1, 3\) must be \(batch, choices, tokens\)"):
        HfxEncoderForMultipleChoice(config)(input_ids=packed["input_ids"])
    segments = HfxEncoderModel(HfxEncoderConfig(vocab_size=330, type_vocab_size=2, **SIZES))
    with pytest.raises(ValueError, match=r"token_type_ids: token id 2 is outside the vocabulary 0\.\.1"):
        segments(packed["input_ids"], token_type_ids=torch.tensor([[0, 1, 2]]))
