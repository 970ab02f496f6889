"""The card: valid metadata, the run's own numbers, no path of any machine."""

import pytest
from huggingface_hub import ModelCard
from models.decoder_grid import make_model

from hf_ext.hub.model_card import RunFacts, model_card, without_local_paths


def facts(**changes):
    return RunFacts(
        **{
            "title": "a run",
            "summary": "A small model.",
            "limits": "None known.",
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
    assert str(tmp_path) not in read.content
    assert "/home/me" not in read.content
    assert "secret" not in read.content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--output_dir /tmp/a/b", "--output_dir b"),
        ("--output_dir=/tmp/a/b c", "--output_dir=b c"),
        ("x: '/home/me/*.txt'", "x: '*.txt'"),
        ("x: ~/texts/a.txt", "x: a.txt"),
        ("recipes/pretraining/debug.yaml", "recipes/pretraining/debug.yaml"),
        ("see https://arxiv.org/abs/1706.03762", "see https://arxiv.org/abs/1706.03762"),
        ("1 / 2", "1 / 2"),
    ],
)
def test_local_paths_are_cut(text, expected):
    assert without_local_paths(text) == expected


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
