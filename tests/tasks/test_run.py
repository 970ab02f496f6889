"""What every run does: it pushes the whole folder once, card and all, to a repository that is private."""

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.trainer


ROOT = Path(__file__).parents[2]


class HubThatWasnt:
    """Takes note of what a push would have sent."""

    def __init__(self):
        self.made, self.pushed = [], []

    def create_repo(self, name, token=None, private=None, exist_ok=False):
        self.made.append((name, private))
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **rest):
        there = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()}
        card = (Path(folder_path) / "README.md").read_text()
        self.pushed.append({"repo": repo_id, "files": there, "ignored": ignore_patterns, "card": card})


@pytest.mark.heavy
def test_a_push_is_the_finished_folder_once(tmp_path, monkeypatch):
    hub = HubThatWasnt()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    monkeypatch.chdir(ROOT)
    script = "recipes/text_classification/train.py"
    main = runpy.run_path(script)["main"]
    recipe = str(Path(script).with_name("debug.yaml"))
    out = str(tmp_path / "mine")
    argv = [recipe, "--training.output_dir", out, "--push_to_hub", "--hub_model_id", "me/mine", "--max_steps", "60"]
    monkeypatch.setattr(sys, "argv", [script, *argv])
    monkeypatch.setitem(os.environ, "HF_TOKEN", "hf_not_a_token")
    main(argv)
    assert hub.made == [("me/mine", True)]
    (pushed,) = hub.pushed
    assert pushed["repo"] == "me/mine"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png", "recipe.yaml"} <= pushed[
        "files"
    ]
    assert any("checkpoint" in pattern for pattern in pushed["ignored"])
    # the run's own card, not the stock one
    assert "## Intended use and limits" in pushed["card"]
    assert "generated automatically" not in pushed["card"]
    assert "hf_not_a_token" not in pushed["card"]
