"""The text classification recipe as a user types it."""

import json
import subprocess
from functools import partial

import pytest
import yaml
from cli.command_line import hf_ext_command
from recipes.recipe_runs import ROOT, read_lines, read_results, refusal, run_script, use_as_the_card_says


FOLDER = ROOT / "recipes/text_classification"
SCRIPT = FOLDER / "train.py"


run = partial(run_script, SCRIPT)


@pytest.mark.heavy
def test_the_short_recipe_and_its_resume(tmp_path):
    out = tmp_path / "run"
    done = run(FOLDER / "debug.yaml", "--training.output_dir", out)
    assert done.returncode == 0, done.stderr
    assert read_results(out)["eval_accuracy"] >= 0.9  # half of them are positive
    assert "reloaded in a fresh process: HfxEncoderForSequenceClassification" in done.stdout
    lines = read_lines(out / "validation_predictions.jsonl")
    right = sum(line["prediction"] == line["label"] for line in lines) / len(lines)
    assert right == pytest.approx(read_results(out)["eval_accuracy"])
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "type: matthews_correlation" in card
    assert "score" in use_as_the_card_says(out)
    assert str(tmp_path) not in card
    for name in ("loss.png", "recipe.yaml", "tokenizer.json", "trainer_state.json"):
        assert (out / name).is_file(), name

    # half of it again, from the checkpoint: the same weights
    weights = (out / "model.safetensors").read_bytes()
    subprocess.run(["rm", "-r", str(out / "checkpoint-120"), str(out / "model.safetensors")], check=True)
    resumed = run(FOLDER / "debug.yaml", "--training.output_dir", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "(60 steps done)" in resumed.stdout
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.heavy
def test_an_adapter_with_a_head_of_its_own(tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "run"
    trained = run(FOLDER / "debug.yaml", "--training.output_dir", base, "--max_steps", 6)
    assert trained.returncode == 0, trained.stderr
    sections = yaml.safe_load((FOLDER / "reviews_topic.yaml").read_text(encoding="utf-8"))
    del sections["tokenizer"]  # it comes with the model
    sections |= {"model": {"path": str(base), "new_head": True}, "adapter": {"method": "lora", "merge": False}}
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(sections))
    done = run(tmp_path / "topics.yaml", "--training.output_dir", out, "--max_steps", 60)
    assert done.returncode == 0, done.stderr
    assert "reloaded in a fresh process" in done.stdout
    assert not (out / "model.safetensors").exists()
    assert "score" in use_as_the_card_says(out)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(line) + "\n" for line in read_lines(out / "validation_predictions.jsonl")))
    argv = ("evaluate", out, held_out, "--base", base, "--columns", "label=label", "--json")
    evaluated = hf_ext_command(capsys, *argv)
    assert evaluated.code == 0, evaluated.line
    assert json.loads(evaluated.out)["accuracy"] == pytest.approx(read_results(out)["eval_accuracy"])

    first = (out / "README.md").read_text(encoding="utf-8").split("\n\n")[1:3]
    assert hf_ext_command(capsys, "card", out, "--rewrite", "--base", base).code == 0
    again = (out / "README.md").read_text(encoding="utf-8").split("\n\n")[1:3]
    assert again == first
    assert "An adapter (lora) of " in again[1]
    said = "holds an adapter, not the model that it is for"
    assert said in hf_ext_command(capsys, "quantize", out, tmp_path / "int8").line
    assert said in hf_ext_command(capsys, "export", out, tmp_path / "onnx", "--to", "onnx").line


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "metric", "bound"),
    [
        ("reviews_topic", "eval_accuracy", 0.6),
        ("reviews_topics", "eval_f1_micro", 0.6),
        ("reviews_stars", "eval_pearson", 0.9),
    ],
)
def test_topics_and_stars(name, metric, bound, tmp_path):
    done = run(FOLDER / f"{name}.yaml", "--training.output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "run")[metric] >= bound


@pytest.mark.heavy
def test_sentiment_of_reviews_moves(tmp_path, real_data):
    for split in ("train", "dev"):
        if not (real_data / "sst2" / f"{split}.tsv").is_file():
            pytest.skip(f"no data set at hand: sst2/{split}.tsv")
    files = {"train": str(real_data / "sst2/train.tsv"), "validation": str(real_data / "sst2/dev.tsv")}
    out = tmp_path / "run"
    done = run(
        FOLDER / "sst2.yaml",
        *("--data.data_files", json.dumps(files), "--training.output_dir", out, "--report_to", "none"),
        *("--num_train_epochs", 1, "--max_train_rows", 3000, "--warmup_steps", 10),
    )
    assert done.returncode == 0, done.stderr
    assert read_results(out)["eval_accuracy"] >= 0.58  # 0.51 of the sentences are positive


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--classification.problem_type", "regresion"], "did you mean 'regression'"),
        (["--classification.treshold", "0.3"], "classification.treshold: no such field; did you mean 'threshold'?"),
        (["--data.columns", "{label: sentimnt}"], "'sentimnt' (the task's 'label') is not among the columns"),
        (["--model", "{path: nowhere/at/all}"], "nowhere/at/all"),
        (["--adapter.method", "lora"], "adapter.method='lora': needs a trained model; set model.path"),
        (["--adapter.r", "0"], "adapter.r=0: must be at least 1"),
        (["--tokenizer.vocab_size", "20"], "vocab_size"),
        (["--metric_for_best_model", "acuracy"], "acuracy"),
        (["--report_to", "wandbee"], "report_to='wandbee': unknown or not installed"),
        (["--fp8"], "fp8=True: needs a GPU"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_nonsense_is_one_line(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    assert message in refusal(SCRIPT, [FOLDER / "debug.yaml", "--training.output_dir", out, *argv], monkeypatch, capsys)
