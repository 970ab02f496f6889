"""The command line: what it prints, and what it refuses in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ext.training.scaling import LAWS, __main__, report


ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "pretraining" / "quickstart.yaml")


def printed(capsys, *argv) -> str:
    __main__.main([str(a) for a in argv])
    return capsys.readouterr().out


def test_a_recipe(capsys):
    text = printed(capsys, RECIPE)
    assert "all           3,148,608  3.15M" in text
    assert "tied to the embedding" in text
    assert "8 rows of 256 tokens, fp32, muon" in text
    assert "Keys and values in the cache" in text


def test_options_go_before_the_recipe_s(capsys):
    options = ("--batch", 2, "--length", 128, "--optimizer", "adamw", "--precision", "bf16_autocast", "--checkpointing")
    text = printed(capsys, RECIPE, *options, "--zero", 3, "--ranks", 4)
    assert "2 rows of 128 tokens, bf16_autocast, adamw, checkpointing, ZeRO stage 3 over 4 ranks" in text
    assert "gathered blocks" in text


@pytest.mark.parametrize("name", ["masked", "span_corruption", "debug"])
def test_recipes_of_every_family(capsys, name):
    text = printed(capsys, ROOT / "recipes" / "pretraining" / f"{name}.yaml")
    assert ("cache" in text) == (name != "masked")
    assert ("tokens of source and" in text) == (name == "span_corruption")


def test_configurations_of_transformers(capsys, tmp_path):
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 32}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert printed(capsys, tmp_path) == printed(capsys, tmp_path / "config.json")
    assert "rows of 32 tokens" in printed(capsys, tmp_path)


def test_budgets_and_fits(capsys, tmp_path):
    law, table = LAWS["epoch"], tmp_path / "runs.csv"
    rows = [(N, r * N, law.loss(N, r * N)) for N in (1e7, 1e8, 1e9) for r in (5, 20, 80)]
    table.write_text("parameters,tokens,loss\n" + "\n".join(",".join(map(str, row)) for row in rows))
    text = printed(capsys, "--fit", table, "--bootstrap", 2, "--budget", 1e20, "--plot", tmp_path / "law.png")
    assert "alpha                0.3478" in text
    assert "own" in text
    assert "A HfxDecoderConfig of about that size, after 'own'" in text
    assert (tmp_path / "law.png").stat().st_size > 10_000
    hours = printed(capsys, "--hours", 24, "--accelerators", 8, "--accelerator", "1e15", "--mfu", 0.5)
    assert f"Compute-optimal for {24 * 3600 * 8 * 5e14:.3g} FLOPs" in hours


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to do"),
        (["--bugdet", "1e20"], "unrecognized arguments: --bugdet"),
        (["--budget", "much"], "argument --budget: invalid float value: 'much'"),
        (["--budget", "1e20", "--hours", "1"], "--budget, --hours: both say how much"),
        (["--budget", "1e20", "--plot", "law.png"], "--plot law.png: has no effect without --fit"),
        (["--budget", "1e20", "--batch", "4"], "--batch: has no effect without a recipe"),
        (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (["model.bin"], "model.bin: must be a recipe"),
        ([RECIPE, "--length", "4096"], "length=4096: longer than max_position_embeddings=512"),
        ([RECIPE, "--zero", "2", "--ranks", "2"], "zero_stage=2: splits matrices"),
    ],
)
def test_nonsense_is_refused(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        __main__.main(argv)
    assert "\n" not in str(error.value)


def test_unknown_architectures_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hfx_decodre"}')
    with pytest.raises(ValueError, match="model_type='hfx_decodre' is not known"):
        __main__.main([str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        __main__.main([str(tmp_path)])


def test_misspelt_fields_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {hidden_sise: 64}\n")
    with pytest.raises(ValueError, match=r"hidden_sise.*hidden_size"):
        __main__.main([str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("training: {max_steps: 3}\n")
    with pytest.raises(ValueError, match="has no model section"):
        __main__.main([str(tmp_path / "a.yaml")])


@pytest.mark.heavy
def test_as_a_command():
    command = [sys.executable, "-m", "hf_ext.training.scaling", "--budget", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: flops=-1.0: must be a number above 0\n"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    assert "examples:" in capsys.readouterr().out


def test_numbers_are_readable():
    assert [report.short(n) for n in (12, 999.6, 1500, 2.5e9, 1e12)] == ["12", "1.00K", "1.50K", "2.50B", "1.00T"]
    assert [report.size(n) for n in (0, 100, 1536, 3 * 2**30)] == ["0 B", "100 B", "1.50 KiB", "3.00 GiB"]
    assert report.flops(6.3e9) == "6.30 GFLOP"
