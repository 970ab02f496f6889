"""Sentence embeddings: ours, and what sentence-transformers makes of the folder."""

import pytest
import torch

from hf_ext.data import train_tokenizer
from hf_ext.hub import save_for_sentence_transformers
from hf_ext.models import HfxEncoderConfig, HfxEncoderForMaskedLM, sentence_embeddings


SENTENCES = ["a stirring , funny film", "the cutting room floor of any given daytime soap", "so"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SENTENCES * 4, vocab_size=300, model_max_length=64)
    config = HfxEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.25,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    return HfxEncoderForMaskedLM(config).train(), tokenizer


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_batched_equals_alone_by_hand(encoder, pooling):
    model, tokenizer = encoder
    got = sentence_embeddings(model, pooling=pooling, **tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    assert model.training
    model.eval()
    for sentence, vector in zip(SENTENCES, got, strict=True):
        states = model.model(tokenizer(sentence, return_tensors="pt").input_ids).last_hidden_state[0]
        expected = states.mean(dim=0) if pooling == "mean" else states[0]
        torch.testing.assert_close(vector, expected.detach(), atol=1e-5, rtol=1e-5)
    normed = sentence_embeddings(model, normalize=True, **tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    torch.testing.assert_close(normed.norm(dim=-1), torch.ones(3))


def test_unknown_pooling(encoder, tmp_path):
    model, tokenizer = encoder
    with pytest.raises(ValueError, match=r"pooling='men': must be one of cls, mean; did you mean 'mean'"):
        save_for_sentence_transformers(model, tokenizer, tmp_path, pooling="men")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", False), ("cls", True)])
def test_loads_in_sentence_transformers(encoder, tmp_path, pooling, normalize):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model, tokenizer = encoder
    save_for_sentence_transformers(model, tokenizer, tmp_path, pooling=pooling, normalize=normalize)
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    expected = sentence_embeddings(model, pooling=pooling, normalize=normalize, **inputs)
    torch.testing.assert_close(torch.tensor(loaded.encode(SENTENCES)), expected, atol=1e-6, rtol=1e-5)
    assert loaded.max_seq_length == 64


def test_a_plain_folder_loads_with_mean_pooling(encoder, tmp_path):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model, tokenizer = encoder
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    expected = sentence_embeddings(model, **tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    torch.testing.assert_close(torch.tensor(loaded.encode(SENTENCES)), expected, atol=1e-6, rtol=1e-5)
