"""`hf-ext generate` and `hf-ext chat`: what the model writes is what `generate` returns."""

import io
import json

import pytest
import torch
from cli.command_line import hf_ext_command
from cli.saved_models import CHAT_TEMPLATE, save_tiny_decoder
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

from hf_ext import (
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderForMaskedLM,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_decoder(tmp_path_factory.mktemp("generate") / "model", CHAT_TEMPLATE)


def written(folder, prompt: str, auto_class=AutoModelForCausalLM, **options) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto_class.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    set_seed(3)
    output = model.generate(**inputs, **options)[0]
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return tokenizer.decode(output[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {"do_sample": False}),
        (["--temperature", "0"], {"do_sample": False}),
        (["--temperature", "0.7"], {"do_sample": True, "temperature": 0.7, "top_k": 0}),
        (["--top_p", "0.5", "--top_k", "7"], {"do_sample": True, "top_p": 0.5, "top_k": 7}),
        (
            ["--min_p", "0.1", "--repetition_penalty", "1.3"],
            {"do_sample": True, "min_p": 0.1, "top_k": 0, "repetition_penalty": 1.3},
        ),
        (["--num_beams", "3"], {"do_sample": False, "num_beams": 3}),
    ],
)
def test_the_text_is_generates(folder, capsys, words, options):
    done = hf_ext_command(capsys, "generate", folder, "import os", "--max_new_tokens", "12", "--seed", "3", *words)
    assert done.code == 0
    assert done.out == written(folder, "import os", max_new_tokens=12, **options) + "\n"


def test_the_prompt_may_come_from_stdin_and_be_shown(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    done = hf_ext_command(capsys, "generate", folder, "--max_new_tokens", "4", "--with_prompt")
    assert done.out == "import os" + written(folder, "import os", max_new_tokens=4, do_sample=False) + "\n"


def test_an_encoder_decoder_writes_what_becomes_of_the_text(folder, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = HfxEncoderDecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    HfxEncoderDecoderForConditionalGeneration(config).save_pretrained(tmp_path / "m", bundle=False)
    tokenizer.save_pretrained(tmp_path / "m")
    done = hf_ext_command(capsys, "generate", tmp_path / "m", "import os", "--max_new_tokens", "6")
    expected = written(
        tmp_path / "m", "import os", AutoModelForSeq2SeqLM, max_new_tokens=6, do_sample=False, num_beams=1
    )
    assert done.out == expected + "\n"


def test_what_cannot_be_meant(folder, tmp_path, capsys):
    def line(*words) -> str:
        done = hf_ext_command(capsys, "generate", folder, *words)
        assert done.code == 2
        assert done.out == ""
        return done.line

    assert "--top_k: has no effect with --temperature 0" in line("x", "--temperature", "0", "--top_k", "3")
    assert "prompt: is empty" in line("")
    assert "has 64 positions" in line("x", "--max_new_tokens", "500")
    assert "--device cuda:9: isn't to be had here" in line("x", "--device", "cuda:9")
    assert "--dtype half_precision: must be a torch dtype" in line("x", "--dtype", "half_precision")
    assert "--base other: has no effect" in line("x", "--base", "other")
    HfxEncoderForMaskedLM(
        HfxEncoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "encoder", bundle=False)
    done = hf_ext_command(capsys, "generate", tmp_path / "encoder", "x")
    assert "HfxEncoderForMaskedLM doesn't write" in done.line
    assert "holds no model" in hf_ext_command(capsys, "generate", tmp_path, "x").line


def test_a_pattern_that_backtracks_without_end_is_told_in_one_line(folder, tmp_path, capsys):
    """Its engine gives up after a number of steps: the kind of CVE-2024-12720, in a tokenizer.json."""
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(content))
    done = hf_ext_command(capsys, "generate", tmp_path / "m", "a" * 28 + "!", "--max_new_tokens", "2")
    assert done.code == 2
    assert "a pattern of it can't read this text" in done.line


def test_a_conversation_is_read_as_a_whole(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nno\n/new\nhi\n/exit\nnot read\n"))
    done = hf_ext_command(capsys, "chat", folder, "--max_new_tokens", "4")
    assert done.code == 0, done.err
    first = "user: hi\n"
    answer = written(folder, f"{first}assistant:", max_new_tokens=4, do_sample=False)
    second = f"{first}assistant: {answer.strip()}\nuser: no\nassistant:"
    expected = [answer, written(folder, second, max_new_tokens=4, do_sample=False), answer]
    assert done.out == "".join(text + "\n" for text in expected)


def test_a_system_turn_comes_first(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/new\nhi\n"))
    done = hf_ext_command(capsys, "chat", folder, "--max_new_tokens", "4", "--system", "short")
    answer = written(folder, "system: short\nuser: hi\nassistant:", max_new_tokens=4, do_sample=False)
    assert done.out == 2 * f"{answer}\n"


def test_no_template_no_chat(folder, tmp_path, capsys):
    save_tiny_decoder(tmp_path / "plain")
    done = hf_ext_command(capsys, "chat", tmp_path / "plain")
    assert (done.code, done.out) == (2, "")
    assert "its tokenizer has no chat template; use hf-ext generate" in done.line


def test_a_conversation_that_is_too_long_ends_in_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 80 + "\n"))
    done = hf_ext_command(capsys, "chat", folder, "--max_new_tokens", "4")
    assert done.code == 2
    assert "the model has 64 positions" in done.line
