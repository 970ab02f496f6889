"""Summaries as a user makes them: written and chosen, the debug recipes and DialogSum in short, refusals."""

import json
from pathlib import Path

import pytest
from recipes.recipe_runs import ROOT, read_lines, read_results, refusal, run_script, use_as_the_card_says
from rouge_score.rouge_scorer import RougeScorer


FOLDER = "recipes/summarization"


def mean_rouge(lines: list[dict]) -> float:
    """rougeL as rouge_score gives it, the best of the references."""
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score_multi(line["references"], line["prediction"])["rougeL"].fmeasure for line in lines]
    return sum(scores) / len(scores)


@pytest.mark.heavy
def test_summaries_that_are_written(tmp_path):
    out = tmp_path / "run"
    done = run_script(f"{FOLDER}/train.py", f"{FOLDER}/debug.yaml", "--training.output_dir", out)
    assert done.returncode == 0, done.stderr
    results = read_results(out)
    assert results["eval_rougeL"] > 0.25  # they follow a few patterns
    assert mean_rouge(read_lines(out / "validation_predictions.jsonl")) == pytest.approx(results["eval_rougeL"])
    assert "reloaded in a fresh process: HfxEncoderDecoderForConditionalGeneration" in done.stdout
    assert "pipeline_tag: summarization" in (out / "README.md").read_text()
    assert use_as_the_card_says(out)


@pytest.mark.heavy
def test_sentences_that_are_chosen(tmp_path):
    out = tmp_path / "run"
    done = run_script(f"{FOLDER}/extractive.py", f"{FOLDER}/debug_extractive.yaml", "--training.output_dir", out)
    assert done.returncode == 0, done.stderr
    results = read_results(out)
    assert results["eval_rougeL"] <= results["eval_oracle_rougeL"]
    assert results["eval_lead3_rougeL"] <= results["eval_oracle_rougeL"]
    lines = read_lines(out / "validation_predictions.jsonl")
    for line in lines:  # its own sentences, in their order
        assert line["prediction"].split("\n") == [line["sentences"][place] for place in sorted(line["chosen"])]
    assert "extract_summary" in (out / "README.md").read_text()
    assert use_as_the_card_says(out)


def dialogsum(real_data: Path) -> dict[str, str]:
    files = {
        split: real_data / "dialogsum" / f"dialogsum.{name}.jsonl"
        for split, name in (("train", "dev"), ("test", "test"))
    }
    for file in files.values():
        if not file.is_file():
            pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    return {split: str(file) for split, file in files.items()}


@pytest.mark.heavy
@pytest.mark.parametrize(("script", "recipe"), [("train.py", "dialogsum"), ("extractive.py", "dialogsum_extractive")])
def test_dialogues_in_short(script, recipe, tmp_path, real_data):
    out = tmp_path / "run"
    argv = ["--training.output_dir", out, "--data.data_files", json.dumps(dialogsum(real_data)), "--max_train_rows", 60]
    argv += ["--max_validation_rows", 4, "--max_test_rows", 4, "--num_train_epochs", 3, "--warmup_steps", 2]
    argv += ["--logging_steps", 5, "--report_to", "none", "--tokenizer.vocab_size", 1000]
    if script == "train.py":
        argv += ["--model.hidden_size", 48, "--model.num_attention_heads", 4, "--generation.max_new_tokens", 8]
    done = run_script(f"{FOLDER}/{script}", f"{FOLDER}/{recipe}.yaml", *argv)
    assert done.returncode == 0, done.stderr
    losses = [e["loss"] for e in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert losses[-1] < losses[0]
    lines = read_lines(out / "test_predictions.jsonl")
    assert [len(line["references"]) for line in lines] == [3, 3, 3, 3]
    assert mean_rouge(lines) == pytest.approx(read_results(out)["test_rougeL"])


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        ("train.py", ["--summarization.summary_columns", "[sumary]"], "none is among the columns"),
        ("train.py", ["--model", "{model_type: hfx_encoder}"], "model.model_type='hfx_encoder'"),
        ("train.py", ["--summarization.max_source_lenght", 9], "did you mean 'max_source_length'?"),
        ("extractive.py", ["--summarization.threshold", 1.5], "summarization.threshold=1.5: must be between 0 and 1"),
        ("extractive.py", ["--summarization.unit", "line"], "did you mean 'lines'?"),
        ("extractive.py", ["--model", "{model_type: hfx_decoder}"], "hfx_decoder"),
    ],
    ids=str,
)
def test_nonsense_is_one_line(script, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    recipe = "debug.yaml" if script == "train.py" else "debug_extractive.yaml"
    asked = [f"{FOLDER}/{recipe}", "--training.output_dir", tmp_path / "run", *argv]
    assert message in refusal(f"{FOLDER}/{script}", asked, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()
