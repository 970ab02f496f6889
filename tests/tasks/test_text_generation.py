"""The comparison's numbers, against the model's own loss and torch; beginnings; refusals."""

import math

import pytest
import torch
from transformers import GenerationConfig

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.tasks import text_generation as task
from hf_ext.tasks.constraints import ConstraintArguments


# fp32 sums of some dozens of terms in another order
TOLERANCE = 1e-4
TEXTS = ["The sea is calm tonight, the tide is full. " * 4, "Yes: 12 apples, no pears. " * 6]


@pytest.fixture(scope="module")
def writer():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    config = HfxDecoderConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    return HfxDecoderForCausalLM(config).eval(), tokenizer


def test_log_likelihoods_are_the_loss_of_what_was_written(writer):
    model, _ = writer
    prompts, written = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]
    found = task.log_likelihoods(model, prompts, written, batch_size=2)
    for prompt, text, each in zip(prompts, written, found, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + text])
        loss = model(torch.tensor([prompt + text]), labels=labels).loss.item()
        assert len(each) == len(text)
        assert -sum(each) / len(each) == pytest.approx(loss, abs=TOLERANCE)


def test_greedy_is_the_likeliest_and_a_seed_says_all(writer):
    model, tokenizer = writer
    prompts = [tokenizer(text)["input_ids"] for text in ("The sea", "Yes", "pears, apples")]
    arguments = task.WritingArguments(max_new_tokens=12)
    greedy = task.write(model, tokenizer, prompts, arguments.config("greedy", tokenizer), batch_size=4, seed=0)
    for prompt, text in zip(prompts, greedy, strict=True):
        ids = list(prompt)
        for token in text:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    drawn = [
        task.write(model, tokenizer, prompts, arguments.config("pure sampling", tokenizer), batch_size=4, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_pure_sampling_cuts_nothing(writer):
    _, tokenizer = writer
    config = task.WritingArguments().config("pure sampling", tokenizer)
    assert (config.do_sample, config.top_k) == (True, 0)
    assert task.WritingArguments().config("top-k 40", tokenizer).top_k == 40


def test_the_table(writer):
    model, tokenizer = writer
    arguments = task.WritingArguments(num_prompts=3, prompt_tokens=6, max_new_tokens=10)
    prompts, followed = task.beginnings(TEXTS, tokenizer, arguments)
    assert [len(one) for one in prompts] == [6, 6, 6]
    assert [len(one) for one in followed] == [10, 10, 10]
    table, lines = task.compare(
        model, tokenizer, prompts, followed, arguments, ConstraintArguments(must_include=["sea"]), seed=0
    )
    assert list(table) == [task.REFERENCE, *task.SAMPLERS]
    assert len(lines) == 3 * len(task.SAMPLERS)
    total = [value for row in task.log_likelihoods(model, prompts, followed, batch_size=3) for value in row]
    assert table[task.REFERENCE]["perplexity"] == pytest.approx(math.exp(-sum(total) / len(total)))
    assert table["greedy"]["perplexity"] < table["pure sampling"]["perplexity"]
    assert all(table[sampler]["satisfied"] == 1 for sampler in ("greedy", "pure sampling", "beams"))
    text = task.as_markdown(table)
    assert text.count("\n") == 2 + len(table)
    assert "| satisfied |" in text


def test_beginnings_that_are_given_have_nothing_to_be_held_against(writer):
    model, tokenizer = writer
    arguments = task.WritingArguments(prompts=["The sea", "Y"], samplers={"greedy": {}}, max_new_tokens=5)
    prompts, followed = task.beginnings([], tokenizer, arguments)
    assert followed == []
    table, _ = task.compare(model, tokenizer, prompts, followed, arguments, ConstraintArguments(), seed=0)
    assert list(table) == ["greedy"]
    with pytest.raises(ValueError, match="no held-out text has 96 tokens"):
        task.beginnings(["short"], tokenizer, task.WritingArguments())


def test_the_picture(tmp_path):
    scores = {"perplexity": 3.0, "repetition_4": 0.1}
    task.draw({task.REFERENCE: scores, "greedy": scores, "empty": {"perplexity": None}}, tmp_path / "samplers.png")
    assert (tmp_path / "samplers.png").stat().st_size > 1000


def test_what_follows_the_end_is_cut(writer):
    _, tokenizer = writer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert task._until_end([5, end, pad, pad], tokenizer) == [5, end]
    assert task._until_end([5, 6, pad], tokenizer) == [5, 6]
    assert isinstance(task.WritingArguments().config("beams", tokenizer), GenerationConfig)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "must be at least 1"),
        ({"prompts": [""]}, "one is empty"),
        ({"samplers": {"a": {"temprature": 1.0}}}, "did you mean 'temperature'"),
        ({"samplers": {"a": {"temperature": 1.0}}}, "has no effect without do_sample"),
        ({"samplers": {"a": 3}}, "must be a mapping"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        task.WritingArguments(**options)


def test_settings_that_do_not_fit_the_model():
    config = HfxDecoderConfig(max_position_embeddings=64)
    with pytest.raises(ValueError, match="needs a trained model"):
        task.check_writing(task.WritingArguments(only=True), config, None)
    with pytest.raises(ValueError, match="lower one of the two"):
        task.check_writing(task.WritingArguments(prompt_tokens=60), config, None)
