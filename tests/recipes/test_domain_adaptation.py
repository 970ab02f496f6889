"""Going on from a trained model on other text, whole and by adapters, as a user types it."""

import subprocess

import pytest
from huggingface_hub import ModelCard
from recipes.recipe_runs import ROOT, read_lines, run_script, use_as_the_card_says


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    done = run_script(
        "recipes/pretraining/train.py", ROOT / "recipes/pretraining/debug.yaml", "--training.output_dir", out
    )
    assert done.returncode == 0, done.stderr
    return out


def adapt(trained, out, *argv):
    recipe = ROOT / "recipes/domain_adaptation/debug.yaml"
    return run_script(
        "recipes/domain_adaptation/train.py", recipe, "--model.path", trained, "--training.output_dir", out, *argv
    )


def domains(out) -> dict[str, dict]:
    return {line["domain"]: line for line in read_lines(out / "domains.jsonl")}


@pytest.mark.heavy
def test_the_new_domain_is_learnt_and_replay_keeps_the_old(trained, tmp_path):
    found = {}
    for replay in (0.0, 0.5):
        done = adapt(trained, tmp_path / str(replay), "--old_domain.replay", replay)
        assert done.returncode == 0, done.stderr
        assert "reloaded in a fresh process" in done.stdout
        found[replay] = domains(tmp_path / str(replay))
        assert found[replay]["new"]["after"] < 0.5 * found[replay]["new"]["before"]
    assert found[0.5]["old"]["after"] < found[0.0]["old"]["after"]
    assert found[0.5]["old"]["before"] == found[0.0]["old"]["before"]


@pytest.mark.heavy
def test_adapters_merged_and_over_four_bits(trained, tmp_path):
    whole = adapt(trained, tmp_path / "merged", "--adapter.method", "lora", "--learning_rate", 0.03)
    assert whole.returncode == 0, whole.stderr
    assert "of them trained" in whole.stdout
    assert "reloaded in a fresh process" in whole.stdout
    merged = domains(tmp_path / "merged")["new"]
    assert merged["after"] < merged["before"]
    assert (tmp_path / "merged/model.safetensors").is_file()
    assert (tmp_path / "merged/adapter/adapter_model.safetensors").is_file()

    argv = ["--adapter", "{method: lora, quantize: int4}", "--learning_rate", 0.03]
    done = adapt(trained, tmp_path / "int4", *argv)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "int4/model.safetensors").exists()
    assert "reloaded in a fresh process" in done.stdout  # over weights in 4 bits
    assert not (tmp_path / "int4/config.json").exists()  # the base says what the model is
    (tmp_path / "model").symlink_to(trained)  # where the card's lines find the base
    assert use_as_the_card_says(tmp_path / "int4")
    card = ModelCard.load(tmp_path / "int4" / "README.md")
    assert card.data.library_name == "peft"
    assert "An adapter (lora) of " in card.text
    quantized = domains(tmp_path / "int4")["new"]
    assert quantized["after"] < quantized["before"]

    beside = adapt(trained, tmp_path / "beside", "--adapter", "{method: lora, merge: false}", "--learning_rate", 0.03)
    assert beside.returncode == 0, beside.stderr
    assert "reloaded in a fresh process" in beside.stdout  # by peft
    assert not (tmp_path / "beside/model.safetensors").exists()
    # added into the weights it computes what it did beside them
    assert domains(tmp_path / "beside")["new"]["after"] == pytest.approx(merged["after"], rel=1e-4)

    # stopped and gone on: the same adapter
    weights = (tmp_path / "int4/adapter_model.safetensors").read_bytes()
    last = sorted((tmp_path / "int4").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
    subprocess.run(["rm", "-r", str(last)], check=True)
    resumed = adapt(trained, tmp_path / "int4", *argv, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "int4/adapter_model.safetensors").read_bytes() == weights


@pytest.mark.heavy
def test_what_cant_be_meant(trained, tmp_path):
    for argv, message in (
        (["--old_domain.replay", 1], "old_domain.replay=1.0: must be at least 0 and below 1"),
        (["--old_domain.replay", 0.999], "asks for"),
        (["--tokenizer.vocab_size", 300], "trains a new one; model.path="),
        (["--model", "{model_type: hfx_decoder}"], "model.path: is missing; name the trained model to adapt"),
        (["--adapter", "{method: lora, merge: false}", "--push_to_hub"], "is on this machine only; push that first"),
    ):
        done = adapt(trained, tmp_path / "run", *argv)
        assert done.returncode == 2
        assert message in done.stderr, done.stderr
        assert not (tmp_path / "run").exists()
