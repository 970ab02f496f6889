"""The quantization recipe as a user types it."""

from functools import partial

import pytest
import torch
from recipes.recipe_runs import ROOT, read_lines, read_results, refusal, run_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_ext.quantization import load_quantized
from hf_ext.quantization.training import finish_training, prepare_training


FOLDER = ROOT / "recipes/quantization"
SCRIPT = FOLDER / "train.py"


run = partial(run_script, SCRIPT)


@pytest.mark.heavy
def test_the_short_recipe(tmp_path):
    out = tmp_path / "run"
    done = run(FOLDER / "debug.yaml", "--training.output_dir", out)
    assert done.returncode == 0, done.stderr
    # the scores of training are those of rounded weights
    accuracy = read_results(out)["eval_accuracy"]
    assert accuracy >= 0.9  # half of the reviews are positive
    floats, integers = read_lines(out / "comparison.jsonl")
    assert floats["measured"]["method"] == "-"
    assert integers["measured"]["method"] == "int4"
    assert integers["measured"]["metric"] == ["accuracy", pytest.approx(accuracy)]
    assert integers["measured"]["megabytes"] < floats["measured"]["megabytes"]
    assert done.stdout.strip().endswith((out / "comparison.txt").read_text().strip())
    card = (out / "README.md").read_text().partition("## In fewer bits\n")[2].partition("\n## ")[0]
    assert [line.split(" | ")[1] for line in card.splitlines() if line.startswith("| ")] == [
        "method",
        "---",
        "-",
        "int4",
    ]
    # the kept integers are the rounded floats of the run's folder
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    kept = load_quantized(out / "quantized")
    inputs = AutoTokenizer.from_pretrained(out)(["a fine film", "dull"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        again = finish_training(prepare_training(plain, "int4", group_size=32).eval())
        assert torch.equal(kept(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--quantization.method", "int9"), "method='int9': must be one of"),
        (("--observer", "mse"), "method int4.observer: no such field"),
        (("--quantization", "{method: int8_static, aware: true}"), "ranges that are calibrated don't follow training"),
        (
            ("--quantization", "{method: quanto_int8, aware: true}"),
            "can't be trained towards, its library rounds after",
        ),
        (("--calibration_rows", "0"), "quantization.calibration_rows=0: must be at least 1"),
    ],
)
def test_nonsense(argv, message, tmp_path, monkeypatch, capsys):
    line = refusal(SCRIPT, (FOLDER / "debug.yaml", "--training.output_dir", tmp_path / "x", *argv), monkeypatch, capsys)
    assert message in line
