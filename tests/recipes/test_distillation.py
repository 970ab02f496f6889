"""Teacher, then student, as a user types it."""

import json

import pytest
from recipes.recipe_runs import ROOT, read_lines, read_results, run_script


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    done = run_script(
        "recipes/text_classification/train.py",
        ROOT / "recipes/text_classification/debug.yaml",
        *("--training.output_dir", out, "--model.num_hidden_layers", 2),
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.heavy
def test_a_narrower_student_and_one_of_fewer_layers(teacher, tmp_path):
    recipe = ROOT / "recipes/distillation/debug.yaml"
    argv = ["--teacher.path", teacher, "--training.output_dir", tmp_path / "narrow"]
    done = run_script("recipes/distillation/train.py", recipe, *argv)
    assert done.returncode == 0, done.stderr
    lines = read_lines(tmp_path / "narrow/comparison.jsonl")
    assert [line["model"] for line in lines] == ["teacher", "student"]
    assert lines[1]["parameters"] < lines[0]["parameters"] / 2
    assert lines[1]["accuracy"] >= 0.9
    assert "teacher" in done.stdout
    assert "reloaded in a fresh process" in done.stdout
    card = (tmp_path / "narrow/README.md").read_text()
    assert "taught by one of" in card
    assert str(tmp_path) not in card

    argv[-1] = tmp_path / "half"
    argv += ["--model", "{}", "--distillation.student_layers", "[1]", "--distillation.hidden_weight", 0.1]
    done = run_script("recipes/distillation/train.py", recipe, *argv, "--max_steps", 60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "half/config.json").read_text())["num_hidden_layers"] == 1
    assert read_results(tmp_path / "half")["eval_accuracy"] >= 0.9

    refused = run_script(
        "recipes/distillation/train.py", recipe, *argv[:2], "--training.output_dir", tmp_path / "other", *argv[6:]
    )
    assert refused.returncode == 2
    assert "error: distillation.student_layers, model: both are given" in refused.stderr


@pytest.mark.heavy
def test_a_teacher_that_isnt_there_is_named(tmp_path):
    done = run_script(
        "recipes/distillation/train.py",
        *(ROOT / "recipes/distillation/debug.yaml", "--training.output_dir", tmp_path / "run"),
        *("--teacher.path", tmp_path / "nowhere"),
    )
    assert done.returncode == 2
    assert "nowhere': neither a folder here nor found on the Hub; train one first" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_a_language_models_layer_and_one_narrower_than_it(tmp_path):
    options = ("--training.output_dir", tmp_path / "teacher", "--max_steps", 40)
    done = run_script("recipes/pretraining/train.py", ROOT / "recipes/pretraining/debug.yaml", *options)
    assert done.returncode == 0, done.stderr

    recipe = ROOT / "recipes/distillation/debug_language_model.yaml"
    argv = ["--teacher.path", tmp_path / "teacher", "--training.output_dir", tmp_path / "layer"]
    done = run_script("recipes/distillation/language_model.py", recipe, *argv)
    assert done.returncode == 0, done.stderr
    teacher, student = read_lines(tmp_path / "layer/comparison.jsonl")
    assert student["parameters"] < teacher["parameters"]
    assert teacher["perplexity"] < 400  # of 512 tokens: it has learnt something
    # it begins as a layer of the teacher, and learns on: not far behind, as one from scratch would be
    assert student["perplexity"] < 1.15 * teacher["perplexity"]
    assert read_results(tmp_path / "layer")["eval_perplexity"] == pytest.approx(student["perplexity"])
    card = (tmp_path / "layer/README.md").read_text()
    assert "taught by one of" in card
    assert str(tmp_path) not in card

    argv[-1] = tmp_path / "narrow"
    argv += ["--distillation.student_layers", "null", "--distillation.hidden_weight", 0, "--max_steps", 3]
    model = "{model_type: hfx_decoder, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    done = run_script("recipes/distillation/language_model.py", recipe, *argv, "--model", model)
    assert done.returncode == 0, done.stderr
    teacher, student = read_lines(tmp_path / "narrow/comparison.jsonl")
    assert student["parameters"] < teacher["parameters"] / 2
