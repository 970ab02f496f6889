"""The card: valid metadata, the run's own numbers, no path of any machine."""

import json

import pytest
from huggingface_hub import ModelCard
from models.decoder_grid import make_model

from hf_ext.hub.model_card import RunFacts, model_card


def facts(**changes):
    return RunFacts(
        **{
            "title": "a run",
            "summary": "A small model.",
            "limits": ("None known.",),
            "dataset": "my_texts",
            "dataset_summary": "Ten texts.",
            "metrics": {"loss": 1.25, "perplexity": 3.4903, "tokens": 1234},
            "headline": ("perplexity",),
            "training": {"steps": "10"},
            "command": "python recipes/pretraining/train.py recipes/pretraining/debug.yaml --data_files /home/me/x/a.txt",
            "recipe": "data:\n  data_files: /home/me/x/*.txt\ntraining:\n  output_dir: /tmp/secret/run\n",
            "samples": [{"prompt": "import", "text": " os\nimport sys"}],
            "curve": "loss.png",
            **changes,
        }
    )


def test_card_is_valid_and_says_what_was_measured(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    card = model_card(make_model(qk_norm="head", tie_word_embeddings=True), folder, facts())
    card.save(folder / "README.md")
    read = ModelCard.load(folder / "README.md")
    assert read.data.model_name == "my-run"
    assert read.data.library_name == "transformers"
    assert read.data.tags == ["hf_ext", "hfx_decoder"]
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 3.4903)
    for part in (
        "| perplexity | 3.4903 |",
        "| tokens | 1,234 |",
        "| qk_norm | `head` |",
        "![",
        "import os\nimport sys",
        "tied",
    ):
        assert part in read.text, part
    assert "- None known." in read.text
    assert str(tmp_path) not in read.content
    assert "/home/me" not in read.content
    assert "secret" not in read.content


def test_both_splits_and_prompts_as_they_are(tmp_path):
    """A Hub page compares test scores, and an apostrophe is no `\\u0027`."""
    given = facts(
        metrics={"bleu": 39.8, "test_bleu": 38.7},
        headline=("bleu",),
        samples=[{"prompt": "a woman's\nshoulders <b>", "text": "x"}],
    )
    card = model_card(make_model(), tmp_path, given)
    found = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert found == {"validation": 39.8, "test": 38.7}
    assert 'From `"a woman\'s\\nshoulders <b>"`:' in card.content


def test_everything_that_a_run_knows_is_there(tmp_path):
    given = facts(
        data=[{"name": "x/a.txt", "split": "train", "num_bytes": 12345, "identity": "sha256 ab"}],
        size={"weights": "1 MB"},
        compute={"training": "12 s", "energy, an estimate": "0.1 Wh: /home/me/x\n| of"},
        base_model="me/base",
    )
    card = model_card(make_model(), tmp_path, given)
    for part in (
        "| x/a.txt | train | 12,345 | `sha256 ab` |",
        "| weights | 1 MB |",
        "| training | 12 s |",
        "| energy, an estimate | 0.1 Wh: x \\| of |",
        "| software | hf-ext ",
        "Not for: Facts, advice",
        "```yaml\ndata:\n  data_files: '*.txt'\ntraining:\n  output_dir: run\n```",
    ):
        assert part in card.content, part
    assert card.data.base_model == "me/base"
    assert "## Exports" not in card.content
    headings = [line for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Use it",
        "## Evaluation",
        "## Architecture",
        "## Data",
        "## Training",
        "## Hardware, time, energy",
        "## How to repeat it",
        "## Samples",
        "## Intended use and limits",
    ]


def test_a_task_without_words_about_its_use_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="task='levitation': a card needs words about its use; known are text-generation"
    ):
        model_card(make_model(), tmp_path, facts(task="levitation"))


def test_the_exports_of_the_folder_are_in_the_card(tmp_path):
    write_export(tmp_path / "onnx")
    content = model_card(make_model(), tmp_path, facts()).content
    assert content.index("## Samples") < content.index("## Exports") < content.index("## Intended use")
    assert "| onnx (`onnx`) | decode | 1.3e-06 |" in content


def write_export(folder, quantize=None, **changes):
    """The two records of an export, as `hf_ext.export.export_model` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"decode": {"max_difference": 1.25e-6, "mean_difference": 1e-7, "largest": 5.5, "output": "logits"}}
    parity = {"tolerance": 1e-4, "parts": parts, "greedy_tokens": 20, "greedy_same": 20} | changes
    (folder / "parity.json").write_text(json.dumps(parity))
    (folder / "export.json").write_text(json.dumps({"target": "onnx", "quantize": quantize}))
