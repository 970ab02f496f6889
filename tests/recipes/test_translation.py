"""Translation as a user runs it: the debug recipe learns its pattern, every YAML takes two steps, refusals are one line."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from recipes.recipe_runs import ROOT, read_lines, refusal, run_script, use_as_the_card_says


SCRIPT = ROOT / "recipes/translation/train.py"
DEBUG = ROOT / "recipes/translation/debug.yaml"
RECIPES = sorted((ROOT / "recipes" / "translation").glob("multi30k*.yaml"))
# the 35 sentences held out follow the pattern of those learnt
LEARNT_BLEU = 90


run = partial(run_script, SCRIPT)


@pytest.mark.heavy
def test_the_debug_recipe_learns_to_translate(tmp_path):
    out = tmp_path / "run"
    done = run(DEBUG, "--training.output_dir", out, "--eval_steps", 20, "--save_steps", 60)
    assert done.returncode == 0, done.stderr
    logged = [e for e in json.loads((out / "trainer_state.json").read_text())["log_history"] if "eval_bleu" in e]
    results = json.loads((out / "all_results.json").read_text())
    assert logged[0]["eval_bleu"] < results["eval_bleu"] > LEARNT_BLEU
    assert logged[0]["eval_chrf"] < results["eval_chrf"]
    lines = read_lines(out / "validation_predictions.jsonl")
    assert len(lines) == 35
    assert set(lines[0]) == {"direction", "source", "reference", "prediction"}
    assert sum(line["prediction"] == line["reference"] for line in lines) > len(lines) / 2
    assert "reloaded in a fresh process: HfxEncoderDecoderForConditionalGeneration" in done.stdout
    card = (out / "README.md").read_text()
    assert "pipeline_tag: translation" in card
    assert use_as_the_card_says(out)
    assert json.loads((out / "generation_config.json").read_text())["num_beams"] == 4

    # goes on from what is there: complete, so nothing is trained, and the same is written again
    again = run(DEBUG, "--training.output_dir", out, "--eval_steps", 20, "--save_steps", 60, "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "all_results.json").read_text())["eval_bleu"] == results["eval_bleu"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        ["--translation.directions", "[en-de, de-en]"],
        ["--model", "{model_type: hfx_decoder, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"],
    ],
    ids=["both directions", "decoder"],
)
def test_the_debug_recipe_otherwise(changes, tmp_path):
    argv = ["--training.output_dir", tmp_path / "run", "--max_steps", 4, "--warmup_steps", 1, "--eval_steps", 2]
    done = run(DEBUG, *argv, "--save_strategy", "no", "--load_best_model_at_end", "false", *changes)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert ("eval_bleu_de_en" in results) == ("de-en" in changes[1])


@pytest.mark.heavy
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_two_steps_of_every_recipe(path, tmp_path, real_data):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["data_files"]
    moved = {
        split: {side: str(real_data / Path(file).relative_to("../shared/data")) for side, file in sides.items()}
        for split, sides in data.items()
    }
    for sides in moved.values():
        for file in sides.values():
            if not Path(file).is_file():
                pytest.skip(f"no data set at hand: {Path(file).name} is not there")
    argv = ["--training.output_dir", tmp_path / "run", "--max_steps", 2, "--tokens_per_batch", 512]
    argv += ["--data.data_files", json.dumps(moved), "--data.max_train_rows", 100, "--report_to", "none"]
    argv += ["--data.max_validation_rows", 3, "--data.max_test_rows", 3, "--tokenizer.vocab_size", 600]
    argv += ["--generation.max_new_tokens", 4, "--eval_strategy", "no", "--save_strategy", "no"]
    argv += ["--load_best_model_at_end", "false", "--logging_steps", 1, "--warmup_steps", 0]
    done = run(path, *argv)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert {"eval_bleu", "eval_chrf", "test_bleu", "test_chrf"} <= set(results)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--translation.directions", "[en-de-fr]"], "'en-de-fr' must be two different languages around one hyphen"),
        (["--translation.directions", "[en-fr]"], "'fr' (the task's 'fr') is not among the columns"),
        (["--translation.max_length", "65"], "translation.max_length=65: above 64"),
        (["--generation.max_new_tokens", "65"], "generation.max_new_tokens=65: above 64"),
        (["--generation.num_beam", "2"], "did you mean 'num_beams'?"),
        (["--model", "{model_type: hfx_encoder}"], "model.model_type='hfx_encoder': writes nothing"),
        (["--translation.bleu_tokenizer", "14a"], "translation.bleu_tokenizer"),
        (["--data.data_files", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_nonsense_is_one_line_and_leaves_nothing(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = [DEBUG, "--training.output_dir", tmp_path / "run", *argv]
    assert message in refusal(SCRIPT, asked, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()
