"""Constraints hold for an untrained model, which would rather write anything else, whichever way tokens are chosen."""

import pytest
import regex
import torch
from transformers import GenerationConfig

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.tasks.constraints import ConstraintArguments
from hf_ext.tasks.text_generation import write


TEXTS = ["The sea is calm tonight, the tide is full.", "Yes: 12 apples, no pears."] * 3
WAYS = ({}, {"do_sample": True, "top_k": 0}, {"num_beams": 3})


@pytest.fixture(scope="module")
def writer():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    config = HfxDecoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5
    )
    return HfxDecoderForCausalLM(config).eval(), tokenizer


def written(writer, constraints, way, max_new_tokens=24, seed=0):
    model, tokenizer = writer
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **way
    )
    prompts = [tokenizer(text)["input_ids"] for text in ("The sea", "Yes:", "pears and sea")]
    ids = write(model, tokenizer, prompts, constraints.apply(config), batch_size=2, seed=seed, constraints=constraints)
    return ids, [tokenizer.decode(one, skip_special_tokens=True) for one in ids]


@pytest.mark.parametrize("way", WAYS, ids=("greedy", "drawn", "beams"))
@pytest.mark.parametrize("pattern", ["(yes|no)", "[0-9]{3}-[0-9]{3}", "[a-z ]{5}\\."])
def test_patterns_are_matched(writer, way, pattern):
    constraints = ConstraintArguments(pattern=pattern)
    for seed in range(3 if way.get("do_sample") else 1):
        ids, texts = written(writer, constraints, way, seed=seed)
        for one, text in zip(ids, texts, strict=True):
            assert regex.fullmatch(pattern, text), text
            assert constraints.satisfied_by(text)
            assert one[-1] == writer[1].eos_token_id  # nothing else may follow


def test_a_text_that_had_no_room_is_not_satisfied(writer):
    constraints = ConstraintArguments(pattern="[a-z]{40}")
    _, texts = written(writer, constraints, {}, max_new_tokens=3)
    assert all(regex.fullmatch("[a-z]{40}", text, partial=True) for text in texts)
    assert not any(map(constraints.satisfied_by, texts))


@pytest.mark.parametrize("way", WAYS, ids=("greedy", "drawn", "beams"))
def test_texts_are_included(writer, way):
    constraints = ConstraintArguments(must_include=["tide", "12 apples"])
    _, texts = written(writer, constraints, way)
    assert all(map(constraints.satisfied_by, texts)), texts
    _, free = written(writer, ConstraintArguments(), way)
    assert not any(map(constraints.satisfied_by, free))


def test_stop_strings_and_least_lengths(writer):
    _, free = written(writer, ConstraintArguments(), {})
    stop = regex.search("[a-z]{2}", free[0]).group()
    _, stopped = written(writer, ConstraintArguments(stop_strings=[stop]), {})
    assert free[0].startswith(stopped[0])
    assert stop in stopped[0]
    assert len(stopped[0]) < len(free[0])
    ids, _ = written(writer, ConstraintArguments(min_new_tokens=20), {"do_sample": True, "top_k": 0})
    assert all(len(one) >= 20 for one in ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "(["}, "no regular expression"),
        ({"pattern": "a", "must_include": ["b"]}, "not together with pattern"),
        ({"must_include": [""]}, "one is empty"),
        ({"stop_strings": [""]}, "one is empty"),
        ({"min_new_tokens": 0}, "must be at least 1"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        ConstraintArguments(**options)


def test_texts_without_room_are_refused(writer):
    with pytest.raises(ValueError, match="raise it"):
        written(writer, ConstraintArguments(must_include=["a long text that is longer"]), {}, max_new_tokens=3)
