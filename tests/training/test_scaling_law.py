"""The law and its fit: known constants come back, and from runs' folders and tables the same as from numbers."""

import json
import math
import struct

import pytest
import torch

from hf_ext import HfxDecoderConfig
from hf_ext.training.scaling import LAWS, Run, ScalingLaw, count_parameters, fit_scaling_law, read_runs
from hf_ext.training.scaling.scaling_plot import draw_scaling_law


NOISE = 2e-3  # standard deviation of log L: what seeds differ by
# a descent from noiseless runs ends where its tolerance is met, in a valley in which A and alpha balance each other
EXACT = {"E": 1e-3, "A": 1e-2, "B": 1e-2, "alpha": 1e-3, "beta": 1e-3}


def runs_of(law: ScalingLaw, noise: float = 0.0, seed: int = 0) -> list[Run]:
    """Six sizes, five lengths each."""
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for parameters in (20e6, 50e6, 120e6, 300e6, 700e6, 1.6e9):
        for ratio in (5, 10, 20, 40, 80):
            factor = math.exp(noise * torch.randn((), generator=generator).item())
            runs.append(Run(parameters, ratio * parameters, law.loss(parameters, ratio * parameters) * factor))
    return runs


@pytest.mark.parametrize("name", LAWS)
def test_known_constants_come_back(name):
    fitted = fit_scaling_law(runs_of(LAWS[name]), num_bootstrap=0)
    for field, tolerance in EXACT.items():
        assert getattr(fitted.law, field) == pytest.approx(getattr(LAWS[name], field), rel=tolerance), field
    assert fitted.error < 1e-5
    assert not fitted.intervals


def test_noise_and_an_outlier():
    law, runs = LAWS["epoch"], runs_of(LAWS["epoch"], NOISE)
    runs[7] = Run(runs[7].parameters, runs[7].tokens, 1.3 * runs[7].loss)  # one that diverged
    fitted = fit_scaling_law(runs, num_bootstrap=20)
    assert pytest.approx(law.E, rel=0.05) == fitted.law.E
    assert fitted.law.alpha == pytest.approx(law.alpha, rel=0.1)
    assert fitted.law.beta == pytest.approx(law.beta, rel=0.1)
    assert fitted.law.optimal_parameters(1e21) == pytest.approx(law.optimal_parameters(1e21), rel=0.15)
    for field, (low, high) in fitted.intervals.items():
        assert low < high
        assert 0.7 * low < getattr(law, field) < 1.4 * high, field
    again = fit_scaling_law(runs, num_bootstrap=20)
    assert again == fitted  # the same draws


def test_the_optimum_is_one():
    law, flops = LAWS["epoch"], 1e21
    parameters = law.optimal_parameters(flops)
    best = law.loss(parameters, flops / (6 * parameters))
    for factor in (0.97, 1.03):
        assert best < law.loss(factor * parameters, flops / (6 * factor * parameters))
    assert law.flops_of_optimal(parameters) == pytest.approx(flops)
    assert law.optimal_parameters(100 * flops) == pytest.approx(parameters * 100**law.parameters_exponent)


def write_run(folder, config, tokens_by, loss: float):
    folder.mkdir()
    config.save_pretrained(folder)
    log = [{"step": 1, "loss": 9.0}, {"step": 50, "eval_loss": 8.0}, {"step": 100, "eval_loss": loss}]
    state = {"log_history": log, "global_step": 100, "train_batch_size": 4, "num_input_tokens_seen": 0}
    if tokens_by == "trainer":
        state["num_input_tokens_seen"] = 1234
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if tokens_by == "recipe":
        recipe = "packing: {row_length: 64}\ntraining: {gradient_accumulation_steps: 2}\n"
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def test_runs_of_folders_and_tables(tmp_path):
    config = HfxDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    N = count_parameters(config).total
    by_trainer = write_run(tmp_path / "a", config, "trainer", 3.5)
    by_recipe = write_run(tmp_path / "b", config, "recipe", 3.25)
    table = tmp_path / "c.csv"
    table.write_text("name,parameters,tokens,loss\nmine,1e6,2e7,4.5\n,2e6,2e7,4.25\n")
    found = read_runs([by_trainer, by_recipe, table])
    assert [(r.parameters, r.tokens, r.loss) for r in found] == [
        (N, 1234, 3.5),
        (N, 100 * 4 * 2 * 64, 3.25),
        (1e6, 2e7, 4.5),
        (2e6, 2e7, 4.25),
    ]
    assert found[0].name.endswith("a")
    assert found[2].name == "mine"
    assert found[3].name.endswith("line 3")


def test_a_checkpoint_stands_in_for_its_run(tmp_path):
    config = HfxDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    folder = write_run(tmp_path / "a", config, "trainer", 3.5)
    (folder / "checkpoint-100").mkdir()
    (folder / "trainer_state.json").rename(folder / "checkpoint-100" / "trainer_state.json")
    assert read_runs([folder])[0].loss == 3.5


def test_what_is_missing_is_named(tmp_path):
    config = HfxDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    unknown = write_run(tmp_path / "unknown", config, None, 3.5)
    failed = write_run(tmp_path / "failed", config, "trainer", math.nan)
    torn = write_run(tmp_path / "torn", config, "trainer", 3.5)
    (torn / "trainer_state.json").write_text('{"log_hist')
    (tmp_path / "empty").mkdir()
    (tmp_path / "columns.csv").write_text("N,D,L\n1,2,3\n")
    (tmp_path / "words.csv").write_text("parameters,tokens,loss\n1e6,many,3\n")
    (tmp_path / "negative.csv").write_text("parameters,tokens,loss\n1e6,1e6,-3\n")
    for name, message in {
        "nowhere": "no such folder or file",
        "unknown": "the number of its tokens isn't known",
        "failed": "eval_loss=nan: the run failed",
        "torn": "not JSON",
        "empty": "no config.json",
        "columns.csv": "has no column parameters; its columns are N, D, L",
        "words.csv": "line 2: tokens='many' is not a number",
        "negative.csv": "line 2: loss=-3.0: must be a number above 0",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read_runs([tmp_path / name])
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert unknown.is_dir() and failed.is_dir()  # noqa: PT018


def test_nonsense_is_refused():
    runs = runs_of(LAWS["epoch"])
    with pytest.raises(ValueError, match="runs: 5 are too few"):
        fit_scaling_law(runs[:5])
    with pytest.raises(ValueError, match="runs: 2 different parameters; a power law needs 3"):
        fit_scaling_law(runs[:10])
    with pytest.raises(ValueError, match="confidence=1: must be between"):
        fit_scaling_law(runs, confidence=1)
    with pytest.raises(ValueError, match="beta=0: must be a number above 0"):
        ScalingLaw(1.0, 1.0, 1.0, 0.3, 0)
    worse = [Run(r.parameters, r.tokens, 2 + (r.parameters / 1e9) ** 0.3 + (r.tokens / 1e9) ** 0.3) for r in runs]
    with pytest.raises(ValueError, match="would not lower the loss"):
        fit_scaling_law(worse, num_bootstrap=0)


def test_png_of_a_law(tmp_path):
    runs = runs_of(LAWS["epoch"], NOISE)
    fitted = fit_scaling_law(runs, num_bootstrap=3)
    draw_scaling_law(fitted, runs, tmp_path / "law.png")
    content = (tmp_path / "law.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1320, 576)
    draw_scaling_law(fit_scaling_law(runs, num_bootstrap=0), runs[:-1], tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != content
