"""Sums: exact, nothing but sums, and forced into a text at the right place whatever the model would rather write."""

import pytest
import torch
from transformers import LogitsProcessorList

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.tasks.calculator import Calculator, calculate, what_is_left


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", "24"),
        ("0.1+0.2", "0.3"),  # not 0.30000000000000004
        (".2*50", "10"),
        ("12/60", "0.2"),
        ("1/3", "0.33"),
        ("2/3", "0.67"),
        ("1/8", "0.125"),
        ("-3 + (2-5)*2", "-9"),
        ("1,200*3", "3600"),
        ("5-5", "0"),
        ("99999999999*99999999999", "9999999999800000000001"),
        ("0.5-0.502", "-0.002"),
        ("-1/300", "0"),
    ],
)
def test_values(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "1/0", "2**9", "9//2", "x+1", "1e9", "0x1", "__import__", "3+", "(1", "1" * 65, "f(2)", "1 2", "007"],
)
def test_what_is_no_sum(expression):
    assert calculate(expression) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("48/2 = <<48/2=", "24>>"),
        ("48/2 = <<48/2=2", "4>>"),
        ("48/2 = <<48/2=24", ">>"),
        ("48/2 = <<48/2=24>", ">"),
        ("48/2 = <<48/2=24>>", ""),
        ("48/2 = <<48/2=24>>24 and <<24+1=", "25>>"),
        ("48/2 = <<48/2=3", ""),  # a wrong digit can't be taken back
        ("<<48/2", ""),
        ("48/2=", ""),
        ("<<x/2=", ""),
    ],
)
def test_what_is_left(text, rest):
    assert what_is_left(text) == rest


def test_an_untrained_model_is_made_to_write_the_result():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["3+4 = <<3+4=7>>7"] * 3, vocab_size=280, model_max_length=64)
    config = HfxDecoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=0
    )
    model = HfxDecoderForCausalLM(config).eval()
    prompts = ["<<3+4=", "<<120/2=6", "no sum at all"]
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    for options in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2, "do_sample": False}):
        written = model.generate(
            **inputs, max_new_tokens=6, logits_processor=LogitsProcessorList([Calculator(tokenizer)]), **options
        )
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        assert texts[0].startswith("<<3+4=7>>")
        assert texts[1].startswith("<<120/2=60>>")


def test_scores_of_other_rows_and_what_was_given_stay():
    tokenizer = train_tokenizer(["<<3+4=7>>"] * 3, vocab_size=280, model_max_length=64)
    ids = torch.tensor([tokenizer("<<3+4=")["input_ids"], tokenizer("<<3+4x")["input_ids"]])
    scores = torch.randn(2, len(tokenizer))
    before = scores.clone()
    after = Calculator(tokenizer)(ids, scores)
    assert torch.equal(scores, before)
    assert torch.equal(after[1], before[1])
    assert tokenizer.decode(after[0].argmax()).startswith("7")
    assert after[0].isfinite().sum() == 1
