"""A Hub on this machine for each test, and a small model's folder to push to it."""

import shutil

import pytest
from hub.loopback_hub import reachable_hub
from models.decoder_grid import make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast


CARD = """---
license: apache-2.0
library_name: transformers
tags: [hf_ext]
---

# A small model

![loss](loss.png)
"""


@pytest.fixture
def hub(monkeypatch):
    with reachable_hub(monkeypatch) as running:
        yield running


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mine"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    GenerationConfig(max_new_tokens=5).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    (folder / "all_results.json").write_text('{"eval_loss": 1.5}\n')
    return folder


@pytest.fixture
def folder(saved_model, tmp_path):
    """A copy of the small model's folder, to do with as a test pleases."""
    return shutil.copytree(saved_model, tmp_path / "mine")
