"""What every run does: it pushes the finished folder once, card and all, to a repository that is private."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
TOKEN = LoopbackHub.token


@pytest.mark.heavy
def test_a_push_is_the_finished_folder_once_without_a_word_of_this_machine(tmp_path):
    """Canaries: a user, their home, a token and a key, none of which may be in what was pushed."""
    home = tmp_path / "canaryhome"
    output = home / "runs" / "mine"
    command = [sys.executable, "recipes/text_classification/train.py", "recipes/text_classification/debug.yaml"]
    command += ["--training.output_dir", str(output), "--push_to_hub", "--hub_model_id", "me/mine", "--max_steps", "60"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HOME": str(home), "LOGNAME": "canaryuser", "USER": "canaryuser", "SOME_API_KEY": "k3y-of-canary"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    with LoopbackHub() as hub:
        environment["HF_ENDPOINT"] = hub.endpoint
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert hub.repository("me/mine").private
        assert hub.repository("me/mine").messages == ["initial commit", "Training of mine"]
        pushed = hub.files("me/mine")
    expected = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png", "recipe.yaml"}
    assert expected | {"all_results.json", "trainer_state.json"} <= set(pushed)
    assert not [name for name in pushed if "checkpoint" in name or name.endswith((".bin", ".pt"))]
    # the run's own card, not the stock one
    assert b"## Intended use and limits" in pushed["README.md"]
    assert b"generated automatically" not in pushed["README.md"]
    changed = {name for name in pushed if pushed[name] != (output / name).read_bytes()}
    assert changed == {"recipe.yaml", "trainer_state.json"}
    assert b"output_dir: mine" in pushed["recipe.yaml"]
    assert b'"best_model_checkpoint": "checkpoint-60"' in pushed["trainer_state.json"]
    for name, content in pushed.items():
        for canary in ("canary", str(tmp_path), str(ROOT), TOKEN):
            assert canary.encode() not in content, (name, canary)
    assert not [path for path in output.parent.iterdir() if path != output]
