"""BPE-dropout: the tokenizer's own encoding without it, letters at its end, the same text always, refusals."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_ext.data import BpeDropout, train_tokenizer


TEXTS = [
    "The films were filmed badly, weren't they? 1,234 – déjà vu 日本\n\n end",
    "a film of films: the filmmaker's filming",
]


@pytest.fixture(scope="module", params=[False, True], ids=["first word as it is", "first word as the others"])
def tokenizer(request):
    wraps = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True, "reads_words": request.param}
    return train_tokenizer(TEXTS * 9, vocab_size=340, model_max_length=500, **wraps)


def cut(tokenizer, rate, text, seed=0):
    torch.manual_seed(seed)
    return BpeDropout(tokenizer, rate)(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
def test_without_dropout_it_is_the_tokenizers_encoding(tokenizer, text):
    # not by leaving it as it is: words are joined from their letters
    dropout = BpeDropout(tokenizer, 0.0)
    joined = [[*dropout._join(list(word), lambda: 0.5)] for word in tokenizer.backend_tokenizer.encode(text).tokens]
    assert any(len(word) == 1 and len(word[0]) > 3 for word in joined)
    assert cut(tokenizer, 0.0, text) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_cut_is_the_same_text(tokenizer, text):
    plain = tokenizer(text)["input_ids"]
    cuts = [cut(tokenizer, 0.3, text, seed) for seed in range(8)]
    assert len({tuple(tokens) for tokens in cuts}) == 8
    for tokens in cuts:
        assert tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(" ") == text
        assert (tokens[0], tokens[-1]) == (plain[0], plain[-1])
        assert len(tokens) > len(plain)
    letters = cut(tokenizer, 0.999999, text)
    assert len(letters) == len(tokenizer.decode(plain, skip_special_tokens=True).encode()) + 2


def test_the_share_of_passed_over_merges_is_the_rate():
    """One pair that can be joined: whole with probability 1 - p."""
    tokenizer = train_tokenizer(["ab"] * 99, vocab_size=259, model_max_length=9)
    ab = tokenizer("ab")["input_ids"]
    assert len(ab) == 1
    torch.manual_seed(0)
    dropout = BpeDropout(tokenizer, 0.25)
    whole = sum(dropout(ab) == ab for _ in range(4000)) / 4000
    assert whole == pytest.approx(0.75, abs=0.02)  # three standard errors of 0.007


def test_draws_come_from_torchs_generator(tokenizer):
    assert cut(tokenizer, 0.3, TEXTS[0], 5) == cut(tokenizer, 0.3, TEXTS[0], 5)
    assert cut(tokenizer, 0.3, TEXTS[0], 5) != cut(tokenizer, 0.3, TEXTS[0], 6)


def test_what_cannot_be_read_back_stays(tokenizer):
    first_byte = [tokenizer.convert_tokens_to_ids("æ")]  # of a letter whose other two were cut off
    assert tokenizer.decode(first_byte) == "\ufffd"
    assert BpeDropout(tokenizer, 0.9)(first_byte) == first_byte


def test_refused(tokenizer):
    with pytest.raises(ValueError, match=r"bpe_dropout=1: must be at least 0 and below 1"):
        BpeDropout(tokenizer, 1)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="needs a byte pair encoding, the tokenizer is WordLevel"):
        BpeDropout(words, 0.1)
    marked = models.BPE({"a": 0, "b</w>": 1, "ab</w>": 2}, [("a", "b</w>")], end_of_word_suffix="</w>")
    with pytest.raises(ValueError, match="marks pieces by end_of_word_suffix"):
        BpeDropout(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(marked)), 0.1)
    bare = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    with pytest.raises(ValueError, match="doesn't split texts into words"):
        BpeDropout(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bare)), 0.1)
