"""Token classification as a user types it: the debug recipe whole, resumed, real data in short, refusals."""

import json
import subprocess
from functools import partial

import pytest
from recipes.recipe_runs import read_lines, run_script, use_as_the_card_says
from transformers import pipeline

import hf_ext  # noqa: F401  registers our architectures


FOLDER = "recipes/token_classification"


run = partial(run_script, f"{FOLDER}/train.py")


@pytest.mark.heavy
def test_the_debug_recipe_learns_and_resumes(tmp_path):
    out = tmp_path / "run"
    argv = (f"{FOLDER}/debug.yaml", "--training.output_dir", out, "--save_total_limit", 20)
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_f1"] > 0.9
    assert {"eval_f1_PERSON", "eval_f1_PLACE", "eval_f1_DAY", "eval_f1_ORGANIZATION"} <= set(results)
    assert "reloaded in a fresh process: HfxEncoderForTokenClassification" in done.stdout
    card = (out / "README.md").read_text(encoding="utf-8")
    assert 'aggregation_strategy="simple"' in card
    assert "entity_group" in use_as_the_card_says(out)
    # the file of predictions, by our windows, is what a user's pipeline says by words, given the text or the words
    tagger = pipeline("token-classification", model=str(out), aggregation_strategy="first")
    for line in read_lines(out / "validation_predictions.jsonl")[:6]:
        ours = [(entity["type"], entity["start"], entity["end"]) for entity in line["entities"]]
        for found in (tagger(line["text"]), *tagger([line["text"].split()], is_split_into_words=True)):
            assert [(entity["entity_group"], entity["start"], entity["end"]) for entity in found] == ours

    # stopped half-way and gone on: the same weights
    weights = (out / "model.safetensors").read_bytes()
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in checkpoints[len(checkpoints) // 2 :]:
        subprocess.run(["rm", "-r", str(path)], check=True)
    (out / "model.safetensors").unlink()
    resumed = run(*argv, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["python_code", "dialogsum_entities"])
def test_real_texts_in_short(recipe, tmp_path, request):
    argv = [f"{FOLDER}/{recipe}.yaml", "--training.output_dir", tmp_path, "--max_steps", 40, "--warmup_steps", 5]
    argv += ["--eval_steps", 20, "--save_steps", 20, "--eval_strategy", "steps", "--save_strategy", "steps"]
    argv += ["--logging_steps", 10, "--data.max_train_rows", 60, "--data.max_validation_rows", 12]
    argv += ["--report_to", "none"]
    if recipe == "dialogsum_entities":
        files = {
            split: str(request.getfixturevalue("real_data") / f"dialogsum/dialogsum.{name}.jsonl")
            for split, name in (("train", "dev"), ("test", "test"))
        }
        argv += ["--data.data_files", json.dumps(files), "--data.max_test_rows", 20]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses[-1] < losses[0] / 2
    results = json.loads((tmp_path / "all_results.json").read_text())
    if recipe == "python_code":
        assert results["eval_accuracy"] > 0.6  # most words are outside
        assert read_lines(tmp_path / "validation_predictions.jsonl")[0]["true"]
    else:
        assert 0 <= results["test_f1"] <= 1
        assert (tmp_path / "test_predictions.jsonl").is_file()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--tagging.rule", "python"), "tagging.rule='python'"),
        (("--tagging.scheme", "BIOES"), "not BIOES; end the entity with E"),
        (("--data.columns", "{tokens: words}"), "'words' (the task's 'tokens') is not among the columns"),
    ],
)
def test_nonsense_is_one_line(argv, message, tmp_path):
    done = run(f"{FOLDER}/debug.yaml", "--training.output_dir", tmp_path / "run", *argv)
    assert done.returncode == 2
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0], done.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
