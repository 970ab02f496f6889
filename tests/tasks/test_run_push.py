"""A run's push: refused before it trains where it couldn't be done, and a copy without paths of this machine."""

import json

import pytest
from hub.loopback_hub import reachable_hub

from hf_ext.hub import HubError
from hf_ext.tasks.run_push import published, take_over_push
from hf_ext.training.arguments import HfxTrainingArguments


@pytest.fixture
def hub(monkeypatch):
    with reachable_hub(monkeypatch) as running:
        yield running


def arguments(tmp_path, **options):
    return HfxTrainingArguments(output_dir=str(tmp_path / "mine"), use_cpu=True, report_to="none", **options)


def test_nobody_is_asked_where_no_push_is(tmp_path):
    assert take_over_push(arguments(tmp_path), {}) is None


def test_the_stock_trainer_is_left_without_it(hub, tmp_path):
    training = arguments(tmp_path, push_to_hub=True)
    asked = take_over_push(training, {})
    assert not training.push_to_hub
    assert (asked.repo_id, asked.private, asked.revision) == ("mine", True, None)
    assert hub.repositories == {}  # asked, not made
    assert hub.asked("GET", "whoami")
    told = arguments(tmp_path, push_to_hub=True, hub_model_id="me/x", hub_private_repo=False, hub_revision="b")
    asked = take_over_push(told, {})
    assert (asked.repo_id, asked.private, asked.revision) == ("me/x", False, "b")


def test_what_cannot_be_pushed_is_refused_before_the_run(hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"training.hub_token: would stand in the recipe") as caught:
        take_over_push(arguments(tmp_path), {"hub_token": "hf_secret"})
    assert "hf_secret" not in str(caught.value)
    with pytest.raises(ValueError, match="hub_strategy='every_save': a recipe pushes once"):
        take_over_push(arguments(tmp_path, push_to_hub=True, hub_strategy="every_save"), {})
    with pytest.raises(ValueError, match="hub_always_push=True: a recipe pushes once"):
        take_over_push(arguments(tmp_path, push_to_hub=True, hub_always_push=True), {})
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Wr0ngOne" * 4)
    with pytest.raises(HubError, match="the token isn't accepted"):
        take_over_push(arguments(tmp_path, push_to_hub=True), {})


def test_the_published_copy(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint-5").mkdir(parents=True)
    (run / "runs" / "today_host").mkdir(parents=True)
    (run / "adapter").mkdir()
    (tmp_path / "base").mkdir()
    (run / "checkpoint-5" / "optimizer.pt").write_text("x")
    (run / "runs" / "today_host" / "events").write_text("x")
    (run / "training_args.json").write_text("{}")
    (run / "model.safetensors").write_text("weights")
    (run / "recipe.yaml").write_text(f"data:\n  data_files: {tmp_path}/a.txt\n")
    state = {"best_model_checkpoint": str(run / "checkpoint-5"), "log_history": [{"loss": 1.0}]}
    (run / "trainer_state.json").write_text(json.dumps(state))
    (run / "adapter" / "README.md").write_text(f"base_model: {tmp_path}/base")
    (run / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/base"}))
    with published(run) as copy:
        names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
        own = {"model.safetensors", "recipe.yaml", "trainer_state.json"}
        assert names == own | {"adapter_config.json", "adapter/adapter_config.json"}
        assert (copy / "model.safetensors").samefile(run / "model.safetensors")
        assert (copy / "recipe.yaml").read_text() == "data:\n  data_files: a.txt\n"
        assert json.loads((copy / "trainer_state.json").read_text()) == state | {
            "best_model_checkpoint": "checkpoint-5"
        }
        assert json.loads((copy / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
        assert json.loads((copy / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/base"
    assert not copy.exists()
    assert str(tmp_path) in (run / "recipe.yaml").read_text()
