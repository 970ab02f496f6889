"""What every run does: a finished folder, card and all, pushed once, without a word of who ran it and where, or of keys."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hub.loopback_hub import LoopbackHub
from huggingface_hub import ModelCard

from hf_ext.hub.recipe_cards import recipe_in_card
from hf_ext.tasks.run import _refuse_secrets
from hf_ext.training.recipe import Recipe


ROOT = Path(__file__).parents[2]
TOKEN = LoopbackHub.token
KEY = "k3y-of-a-canary"
# what goes on from a run, and runs it again, has to say where things are; neither is pushed as it is
FOR_THIS_MACHINE = ("recipe.yaml", "checkpoint-60/trainer_state.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run on planted ground: user, home, host, token, key, git remote, data and output have names to be found."""
    ground = tmp_path_factory.mktemp("ground")
    home = ground / "canaryhome"
    (home / "texts").mkdir(parents=True)
    shutil.copy(ROOT / "recipes/text_classification/debug.jsonl", home / "texts" / "reviews.jsonl")
    (ground / "site").mkdir()
    (ground / "site" / "sitecustomize.py").write_text(
        "import platform, socket\nsocket.gethostname = platform.node = lambda: 'canaryhost'\n"
    )
    output = home / "runs" / "mine"
    command = [sys.executable, "recipes/text_classification/train.py", "recipes/text_classification/debug.yaml"]
    command += ["--data.data_files", str(home / "texts" / "*.jsonl"), "--training.output_dir", str(output)]
    command += ["--push_to_hub", "--hub_model_id", "me/mine", "--max_steps", "60", "--report_to", "tensorboard"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HOME": str(home), "LOGNAME": "canaryuser", "USER": "canaryuser", "SOME_API_KEY": KEY}
    environment |= {"HF_HOME": str(ground / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    path = [str(ground / "site"), str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment |= {"PYTHONPATH": os.pathsep.join(path), "GIT_CONFIG_COUNT": "1"}
    environment |= {
        "GIT_CONFIG_KEY_0": "remote.origin.url",
        "GIT_CONFIG_VALUE_0": f"https://canaryuser:{TOKEN}@x.org/y.git",
    }
    with LoopbackHub() as hub:
        environment["HF_ENDPOINT"] = hub.endpoint
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield SimpleNamespace(
            output=output,
            log=done.stdout + done.stderr,
            pushed=hub.files("me/mine"),
            repository=hub.repository("me/mine"),
            canaries=("canary", str(ground), str(ROOT), TOKEN),
        )


@pytest.mark.heavy
def test_a_push_is_the_finished_folder_once(run):
    assert run.repository.private
    assert run.repository.messages == ["initial commit", "Training of mine"]
    expected = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png", "recipe.yaml"}
    assert expected | {"all_results.json", "trainer_state.json", "run_costs.json"} <= set(run.pushed)
    assert not [name for name in run.pushed if "checkpoint" in name or name.endswith((".bin", ".pt"))]
    # the run's own card, not the stock one
    assert b"## Intended use and limits" in run.pushed["README.md"]
    assert b"generated automatically" not in run.pushed["README.md"]
    assert b"output_dir: mine" in run.pushed["recipe.yaml"]
    changed = {name for name in run.pushed if run.pushed[name] != (run.output / name).read_bytes()}
    assert changed == {"recipe.yaml"}
    assert not [path for path in run.output.parent.iterdir() if path != run.output]


@pytest.mark.heavy
def test_no_canary_is_in_what_is_pushed(run):
    for name, content in run.pushed.items():
        for canary in run.canaries:
            assert canary.encode() not in content, (name, canary)
            assert canary not in name


@pytest.mark.heavy
def test_no_canary_is_in_the_log_or_in_what_stays(run):
    for canary in run.canaries:
        assert canary not in run.log, canary
    files = [path for path in run.output.rglob("*") if path.is_file()]
    names = {path.relative_to(run.output).as_posix() for path in files}
    assert {"README.md", "config.json", "trainer_state.json", "training_args.json", *FOR_THIS_MACHINE} <= names
    assert [name for name in names if name.startswith("runs/") and "events.out.tfevents" in name]
    for path in files:
        name = path.relative_to(run.output).as_posix()
        for canary in run.canaries:
            assert canary not in name
            if name not in FOR_THIS_MACHINE:
                assert canary.encode() not in path.read_bytes(), (name, canary)
    state = json.loads((run.output / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "checkpoint-60"


@pytest.mark.heavy
def test_the_card_is_filled_by_the_run(run):
    content = run.pushed["README.md"].decode()
    card = ModelCard(content)
    assert {result.metric_type for result in card.data.eval_results} >= {"accuracy"}
    recipe = recipe_in_card(content)
    assert recipe["data"]["data_files"] == "*.jsonl"
    assert recipe["training"]["max_steps"] == 60
    assert yaml.safe_load(run.pushed["recipe.yaml"]) == recipe
    for part in (
        "python recipes/text_classification/train.py recipes/text_classification/debug.yaml --data.data_files '*.jsonl'",
        "| texts/reviews.jsonl |  | ",
        "` |\n",
        "| FLOPs of the training | ",
        "| parameters by part | ",
        "| processor | ",
        " W a busy core, ",
        "| software | hf-ext ",
        "of 53 held-out rows",
    ):
        assert part in content, part
    (costs,) = json.loads(run.pushed["run_costs.json"])
    assert (costs["from_step"], costs["to_step"], costs["processes"]) == (0, 60, 1)
    assert costs["cpu_seconds"] > 1


@pytest.mark.parametrize("where", ["recipe", "command"])
@pytest.mark.parametrize("secret", ["hf_" + "C4naryT0" * 4, KEY])
def test_a_key_in_a_recipe_or_command_is_refused(monkeypatch, where, secret):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    given = f"https://x.org/y?key={secret}"
    values = {"data": {"data_files": {"train": [given if where == "recipe" else "a.txt"]}}}
    recipe = Recipe(Path("x.yaml"), {}, values, None, ())
    with pytest.raises(ValueError, match=r"holds a token or key, which would stand in the") as caught:
        _refuse_secrets(recipe, f"train.py {given}" if where == "command" else "train.py")
    assert secret not in str(caught.value)
    assert str(caught.value).startswith("data.data_files: " if where == "recipe" else "command line: ")
    _refuse_secrets(Recipe(Path("x.yaml"), {}, {"data": {"data_files": "a.txt"}}, None, ()), "train.py")
