"""Answers from texts, as a user types it: the debug run and going on from it, real questions, refusals."""

import json
import re
import runpy
import string
import subprocess
import sys
from pathlib import Path

import pytest
from recipes.recipe_runs import read_lines, run_script, use_as_the_card_says


ROOT = Path(__file__).parents[2]
FOLDER = "recipes/question_answering"


def run(script: str, recipe: str, *argv) -> subprocess.CompletedProcess:
    return run_script(f"{FOLDER}/{script}", f"{FOLDER}/{recipe}", *argv)


def normalized(text: str) -> str:
    """SQuAD's, written anew: what the scores of the predictions file are compared with."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(lines: list[dict]) -> float:
    right = [normalized(line["prediction"]) in [normalized(a) for a in line["answers"] or [""]] for line in lines]
    return 100 * sum(right) / len(right)


def losses(folder: Path, name: str = "loss") -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in log if name in entry]


@pytest.mark.heavy
def test_debug_and_going_on_from_its_checkpoint(tmp_path):
    out = tmp_path / "run"
    done = run("train.py", "debug.yaml", "--output_dir", out, "--save_total_limit", 3)
    assert done.returncode == 0, done.stderr
    assert "reloaded in a fresh process: HfxEncoderForQuestionAnswering" in done.stdout
    for name in ("README.md", "loss.png", "model.safetensors", "recipe.yaml", "validation_nbest.jsonl"):
        assert (out / name).is_file(), name
    contexts = {row["id"]: row["context"] for row in read_lines(ROOT / FOLDER / "debug.jsonl")}
    lines = read_lines(out / "validation_predictions.jsonl")
    for line, listed in zip(lines, read_lines(out / "validation_nbest.jsonl"), strict=True):
        context = contexts[line["id"]]
        assert line["prediction"] == ("" if "start" not in line else context[line["start"] : line["end"]])
        assert len(listed["answers"]) == 6  # five, and none
        assert all(a["text"] == context[a["start"] : a["end"]] for a in listed["answers"] if a["text"])
    results = json.loads((out / "eval_results.json").read_text())
    assert results["eval_exact_match"] == pytest.approx(exact_match(lines))
    assert {"eval_f1", "eval_unanswerable_accuracy", "eval_best_f1_threshold"} <= set(results)
    card = (out / "README.md").read_text()
    assert "find_answers(model, tokenizer, " in card
    use_as_the_card_says(out)
    assert f"| f1 | {results['eval_f1']:.4f} |" in card

    # stopped after 20 of 30 steps and gone on from there: the same weights
    weights = (out / "checkpoint-30" / "model.safetensors").read_bytes()
    for name in ("checkpoint-30", "model.safetensors"):
        subprocess.run(["rm", "-r", str(out / name)], check=True)
    again = run("train.py", "debug.yaml", "--output_dir", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert "(20 steps done)" in again.stdout
    assert (out / "checkpoint-30" / "model.safetensors").read_bytes() == weights


@pytest.mark.heavy
def test_written_answers(tmp_path):
    out = tmp_path / "run"
    done = run("generative.py", "debug_generative.yaml", "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert "reloaded in a fresh process: HfxEncoderDecoderForConditionalGeneration" in done.stdout
    logged = losses(out)
    assert logged[-1] < logged[0]
    lines = read_lines(out / "validation_predictions.jsonl")
    asked = {row["id"]: row for row in read_lines(ROOT / FOLDER / "debug.jsonl")}
    assert all(line["answers"] == asked[line["id"]]["answers"]["text"] for line in lines)
    results = json.loads((out / "eval_results.json").read_text())
    assert results["eval_exact_match"] == pytest.approx(exact_match(lines))
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 16
    use_as_the_card_says(out)


@pytest.mark.full
@pytest.mark.heavy
@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_written_answers_of_real_questions(family, tmp_path, real_data):
    model = f"{{model_type: hfx_{family}, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    argv = [*on_xquad(real_data, "en", tmp_path / "run"), "--model", model + "max_position_embeddings: 512}"]
    done = run("generative.py", "xquad_en_generative.yaml", *argv, "--max_steps", 30, "--max_validation_rows", 20)
    assert done.returncode == 0, done.stderr
    logged = losses(tmp_path / "run")
    assert logged[-1] < logged[0] - 0.3
    lines = read_lines(tmp_path / "run" / "validation_predictions.jsonl")
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_exact_match"] == pytest.approx(exact_match(lines))


def on_xquad(real_data: Path, language: str, folder: Path) -> list:
    file = real_data / "xquad" / f"xquad.{language}.json"
    if not file.is_file():
        pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    argv = ["--data.data_files", file, "--output_dir", folder, "--warmup_steps", 2, "--logging_steps", 5]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    return [*argv, "--max_validation_rows", 60, "--report_to", "none"]


@pytest.mark.heavy
@pytest.mark.parametrize("language", ["en", pytest.param("de", marks=pytest.mark.full)])
def test_real_questions(language, tmp_path, real_data):
    done = run(
        "train.py", f"xquad_{language}.yaml", *on_xquad(real_data, language, tmp_path / "run"), "--max_steps", 30
    )
    assert done.returncode == 0, done.stderr
    logged = losses(tmp_path / "run")
    assert logged[-1] < logged[0] - 0.3
    lines = read_lines(tmp_path / "run" / "validation_predictions.jsonl")
    assert len(lines) == 60
    file = json.loads((real_data / "xquad" / f"xquad.{language}.json").read_text(encoding="utf-8"))
    contexts = {q["id"]: p["context"] for a in file["data"] for p in a["paragraphs"] for q in p["qas"]}
    assert all(line["prediction"] == contexts[line["id"]][line["start"] : line["end"]] != "" for line in lines)
    if language == "en":
        results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
        assert results["eval_exact_match"] == pytest.approx(exact_match(lines))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--question_answering.strid", "3"], "question_answering.strid: no such field; did you mean 'stride'?"),
        (["--data.columns", "{question: asked}"], "'asked' (the task's 'question') is not among the columns"),
        (["--null_answers", "false"], "has none; set question_answering.null_answers: true"),
        (["--model", "{model_type: bert_like}"], "model.model_type='bert_like': not known"),
    ],
)
def test_nonsense_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", f"{FOLDER}/debug.yaml", "--output_dir", str(tmp_path / "run"), *argv])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(f"{FOLDER}/train.py", run_name="__main__")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()
