"""A recipe's model section: from scratch, or a trained model with fields changed and a larger vocabulary."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.tasks.model_section import read_model_section


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text of a few words"] * 9, vocab_size=300, model_max_length=32, extra_tokens=["<x>"])


@pytest.fixture
def trained(tmp_path):
    model = HfxDecoderForCausalLM(HfxDecoderConfig(vocab_size=300, **SIZES))
    model.save_pretrained(tmp_path / "trained")
    return model, tmp_path / "trained"


def test_from_scratch_takes_the_tokenizers_vocabulary(tokenizer):
    section = read_model_section({"model_type": "hfx_encoder", "dtype": "bfloat16", **SIZES})
    config = section.config(tokenizer, id2label={0: "no", 1: "yes"})
    assert (config.model_type, config.vocab_size, config.num_labels) == ("hfx_encoder", len(tokenizer), 2)
    assert config.eos_token_id == tokenizer.eos_token_id
    model = section.build(AutoModelForSequenceClassification, config, tokenizer)
    assert model.dtype == torch.bfloat16


def test_a_trained_model_keeps_its_weights_and_grows_its_vocabulary(tokenizer, trained):
    model, folder = trained
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([f"<of the task {number}>" for number in range(301 - len(tokenizer))])
    section = read_model_section({"path": str(folder), "hidden_dropout": 0.25, "attn_implementation": "eager"})
    config = section.config(tokenizer)
    assert config.hidden_dropout == 0.25
    larger = section.build(AutoModelForCausalLM, config, tokenizer)
    assert larger.config._attn_implementation == "eager"
    assert larger.get_input_embeddings().num_embeddings == len(tokenizer) == 301
    new = dict(larger.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(new[name][: len(parameter)], parameter, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model_type": "hfx_decodr"}, "model.model_type='hfx_decodr': not known"),
        ({"hiden_size": 8}, "model.hiden_size: no such field; did you mean 'hidden_size'?"),
        ({"vocab_size": 8}, "model.vocab_size=8: comes from the tokenizer"),
        ({"dtype": "fp31"}, "model.dtype='fp31': must be a torch dtype"),
        ({"revision": "main"}, "model.revision='main': has no effect without model.path"),
        ({"path": "TRAINED", "model_type": "hfx_decoder"}, "comes from model.path="),
        (
            {"path": "TRAINED", "hiden_dropout": 0.1},
            "model.hiden_dropout: no such field; did you mean 'hidden_dropout'?",
        ),
        ({"path": "TRAINED", "vocab_size": 8}, "model.vocab_size: no such field"),
        ({"path": "TRAINED", "hidden_dropout": 2.0}, "hidden_dropout=2.0"),
        ({"path": "EMPTY"}, "holds no model (no config.json)"),
        ({"new_head": True}, "model.new_head=True: is true or false, and needs model.path"),
        ({"path": "TRAINED", "new_head": "yes"}, "model.new_head='yes': is true or false"),
    ],
    ids=str,
)
def test_nonsense_is_refused(section, message, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"TRAINED": str(trained[1]), "EMPTY": str(tmp_path / "empty")}
    section = {name: places.get(value, value) if name == "path" else value for name, value in section.items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_model_section(section).config(vocab_size=300)
    assert message in " ".join(str(caught.value).split())


def test_a_head_that_there_isnt(tokenizer):
    section = read_model_section({"model_type": "hfx_decoder", **SIZES})
    with pytest.raises(
        ValueError, match=r"model\.model_type='hfx_decoder': has no AutoModelForMaskedLM; use one of hfx_encoder"
    ):
        section.build(AutoModelForMaskedLM, section.config(tokenizer), tokenizer)


def test_a_tokenizer_of_more_tokens_than_there_are_embeddings(tokenizer, tmp_path):
    """Its ids would mean other tokens, or none."""
    HfxDecoderForCausalLM(HfxDecoderConfig(vocab_size=200, **SIZES)).save_pretrained(tmp_path)
    section = read_model_section({"path": str(tmp_path)})
    message = (
        rf"^tokenizer: has {tokenizer.vocab_size} tokens, model\.path='.*' has embeddings for 200; leave tokenizer out"
    )
    with pytest.raises(ValueError, match=message):
        section.build(AutoModelForCausalLM, section.config(tokenizer), tokenizer)


@pytest.fixture
def classifier(tokenizer, tmp_path):
    section = read_model_section({"model_type": "hfx_encoder", **SIZES})
    config = section.config(tokenizer, id2label={0: "bad", 1: "good"})
    model = section.build(AutoModelForSequenceClassification, config, tokenizer)
    model.save_pretrained(tmp_path / "classifier")
    return model, str(tmp_path / "classifier")


@pytest.mark.parametrize("names", [["bad", "good", "odd"], ["no", "yes"], ["good", "bad"]], ids=str)
def test_a_head_for_other_labels(names, classifier, tokenizer):
    model, folder = classifier
    head = {"id2label": dict(enumerate(names))}
    section = read_model_section({"path": folder})
    with pytest.raises(
        ValueError, match=rf"its head is for bad, good, the data's labels are {', '.join(names)}; map them"
    ):
        section.build(AutoModelForSequenceClassification, section.config(tokenizer, **head), tokenizer)

    section = read_model_section({"path": folder, "new_head": True})
    other = section.build(AutoModelForSequenceClassification, section.config(tokenizer, **head), tokenizer)
    assert other.config.num_labels == len(names)
    for name, trained in model.base_model.named_parameters():
        assert torch.equal(other.base_model.get_parameter(name), trained), name
    heads = [{n: p for n, p in m.named_parameters() if not n.startswith(m.base_model_prefix)} for m in (model, other)]
    assert heads[0].keys() == heads[1].keys()
    assert any(not torch.equal(p, heads[1][n]) for n, p in heads[0].items() if p.shape == heads[1][n].shape)


def test_a_body_takes_a_head_for_any_labels(classifier, tokenizer):
    """The same labels go on with the head; a head of another kind is new anyway."""
    model, folder = classifier
    section = read_model_section({"path": folder})
    same = section.build(
        AutoModelForSequenceClassification, section.config(tokenizer, id2label={0: "bad", 1: "good"}), tokenizer
    )
    assert all(torch.equal(p, same.get_parameter(name)) for name, p in model.named_parameters())
    head = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}}
    tagger = section.build(AutoModelForTokenClassification, section.config(tokenizer, **head), tokenizer)
    assert tagger.config.num_labels == 3
