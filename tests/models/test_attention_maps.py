"""Attention weights returned and drawn: the numbers that the forward pass used, and a picture that shows them."""

import matplotlib.image
import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5Model

from hf_ext.data.tokenizer_training import train_tokenizer
from hf_ext.models import attention_weights, draw_attention


SENTENCE = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SENTENCE, "a dog, costs $5 and $6\n"], kind="characters", model_max_length=64)


@pytest.mark.parametrize("name", VARIANTS)
def test_of_every_variant(name):
    """Rows are distributions over what is not later, whatever the model was loaded with."""
    model = make_model("hfx_tiled", **VARIANTS[name]).train()
    ids = tokens(B=1, T=9)
    weights = attention_weights(model, ids)
    assert model.training
    assert model.config._attn_implementation == "hfx_tiled"
    assert weights.tokens == tuple(str(token) for token in ids[0].tolist())
    assert len(weights.layers) == model.config.num_hidden_layers
    for layer in weights.layers:
        assert layer.shape == (4, 9, 9)
        assert not layer.triu(1).any()
        total = layer.sum(dim=-1)
        if VARIANTS[name].get("attention_sinks"):
            assert (total < 1).all()
        else:
            torch.testing.assert_close(total, torch.ones(4, 9))


def test_they_are_what_the_layer_used():
    """The first layer by hand: softmax(q k^T / sqrt(d)) v W_o, from the weights that are returned."""
    model = make_model("sdpa", num_hidden_layers=1, position_embedding_type="none")
    ids = tokens(B=1, T=7)
    seen = {}
    attention = model.model.layers[0].self_attn
    attention.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(x=args[0] if args else kwargs["hidden_states"], y=output[0]),
        with_kwargs=True,
    )
    (weights,) = attention_weights(model, ids).layers
    x = seen["x"].detach()
    v = attention.v_proj(x).view(7, 4, 8).transpose(0, 1)
    by_hand = attention.o_proj((weights @ v).transpose(0, 1).reshape(1, 7, 32))
    torch.testing.assert_close(by_hand, seen["y"])


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 99}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BertModel(BertConfig(**SMALL)), (4, 5, 5)),
        (lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=99)), (2, 5, 5)),
        (lambda: T5Model(T5Config(d_model=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=99)).encoder, (2, 5, 5)),
    ],
    ids=["BERT", "GPT-2", "T5's encoder"],
)
def test_of_transformers_own_models(make, shape):
    model = make()
    ids = torch.arange(3, 8)
    asked = model.config._attn_implementation
    weights = attention_weights(model, ids)
    assert model.config._attn_implementation == asked
    model.set_attn_implementation("eager")
    expected = model.eval()(ids[None], output_attentions=True).attentions
    for got, layer in zip(weights.layers, expected, strict=True):
        assert got.shape == shape
        assert torch.equal(got, layer[0])


def test_tokens_are_named(tokenizer):
    model = make_model("sdpa", vocab_size=len(tokenizer))
    weights = attention_weights(model, "a cat\n", tokenizer)
    assert weights.tokens == ("a", "·", "c", "a", "t", "⏎")
    assert attention_weights(model, tokenizer("a cat\n")["input_ids"], tokenizer).tokens == weights.tokens


def test_picture(tmp_path, tokenizer):
    """A weight of 1 is the dark end of the scale, a weight of 0 its light end."""
    model = make_model("sdpa", vocab_size=len(tokenizer))
    path = tmp_path / "all.png"
    weights = draw_attention(model, "costs $5 and $", tokenizer, path=path)
    large = matplotlib.image.imread(path)
    draw_attention(model, "costs $5 and $", tokenizer, layer=1, head=[0, 2], path=path)
    small = matplotlib.image.imread(path)
    assert large.shape[0] > 1.5 * small.shape[0]
    assert large.shape[1] > 1.5 * small.shape[1]
    darkest, blues = small[..., 0], small[..., 2] - small[..., 0]
    assert weights.layers[1][0, 0, 0] == 1  # the first token sees itself only
    assert darkest.min() < 0.1
    assert ((blues > 0.3).mean()) > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "no/such/folder/a.png"}, "path='no/such/folder/a.png': must be a .png in a folder that exists"),
        ({"path": "a.pdf"}, "path='a.pdf': must be a .png"),
        ({"layer": 2}, "layer=2: there are 2, numbered 0 to 1"),
        ({"head": [0, 4]}, "head=4: there are 4, numbered 0 to 3"),
        ({"head": []}, r"head=\[\]: names none"),
        ({"sentence": "  "}, "sentence='  ': holds no tokens"),
        ({"sentence": []}, "sentence: holds no tokens"),
        ({"sentence": "a", "tokenizer": None}, "tokenizer: missing for a text"),
        ({"sentence": torch.zeros(2, 3, dtype=torch.long)}, r"sentence: shape \(2, 3\)"),
    ],
    ids=str,
)
def test_nonsense(change, message, tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    model = make_model("sdpa", vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        draw_attention(**{"model": model, "sentence": SENTENCE, "tokenizer": tokenizer} | change)
    assert not list(tmp_path.iterdir())


def test_a_model_of_two_parts():
    model = T5Model(T5Config(d_model=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=99))
    with pytest.raises(ValueError, match=r"^model: T5Model has an encoder and a decoder; give one of them"):
        attention_weights(model, [3, 4])
