"""The picture exists, shows what is there, and says so where there is nothing."""

import math
import struct

import pytest
from matplotlib.figure import Figure

from hf_ext.training.loss_curve import draw_loss_curve, metric_names


def test_png_of_a_log(tmp_path):
    log = [{"step": s, "loss": 5 / s, "learning_rate": 1e-3} for s in range(1, 9)]
    log += [{"step": 8, "eval_loss": 1.0}, {"step": 9, "loss": math.nan, "learning_rate": 1e-3}]
    draw_loss_curve(log, tmp_path / "loss.png", title="a run")
    content = (tmp_path / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (960, 624)
    draw_loss_curve(log[:4], tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != content


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="log_history: holds no loss"):
        draw_loss_curve([{"step": 1, "learning_rate": 0.1}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


LOG = [
    {"step": 1, "loss": 3.0},
    {"step": 2, "eval_loss": 2.0, "eval_accuracy": 0.5, "eval_bleu": 12, "eval_runtime": 1.0, "eval_tokens": 7},
    {"step": 4, "eval_loss": 2.5, "eval_accuracy": math.nan, "eval_name": "x", "eval_flag": True, "eval_f1": 0.3},
    {"step": 4, "loss": 1.0, "train_runtime": 3.0},
    {"step": 4, "eval_loss": 2.0, "eval_accuracy": 0.5, "eval_f1": 0.9},  # the best weights, evaluated at the end
]


def test_every_metric_of_the_evaluations_gets_a_panel(tmp_path, monkeypatch):
    assert metric_names(LOG) == ["eval_accuracy", "eval_bleu", "eval_f1"]
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    log = [LOG[0], LOG[1] | {"eval_f1": 0.2}, LOG[2] | {"eval_bleu": 11}, *LOG[3:]]
    draw_loss_curve(log, tmp_path / "loss.png", best_step=2, unit="nats")
    loss, *panels = drawn[0].axes
    assert loss.get_ylabel() == "loss, nats"
    assert [panel.get_title(loc="left") for panel in panels] == [
        "accuracy: 0.5 at best, nan at the end",
        "bleu: 12 at best, 11 at the end",
        "f1: 0.2 at best, 0.3 at the end",
    ]
    points = [[line.get_xydata().tolist() for line in panel.lines] for panel in panels]
    accuracy, bleu, f1 = points
    assert accuracy[0] == [[2, 0.5]]
    assert [[2, 0.5]] in accuracy[1:]  # the ring
    assert bleu[0] == [[2, 12], [4, 11]]
    assert f1[0] == [[2, 0.2], [4, 0.3]]
    assert any("best by its metric, step 2" in text.get_text() for text in loss.get_legend().get_texts())


def test_a_metric_that_was_measured_once_has_no_course(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    draw_loss_curve(LOG, tmp_path / "loss.png", best_step=2)
    assert [panel.get_title(loc="left")[:8] for panel in drawn[0].axes[1:]] == ["accuracy"]
    without = [{name: value for name, value in entry.items() if name != "eval_accuracy"} for entry in LOG]
    draw_loss_curve(without, tmp_path / "loss.png", best_step=2)
    _, bleu, f1 = drawn[1].axes  # none of them has one
    assert [panel.get_title(loc="left") for panel in (bleu, f1)] == ["bleu: 12 at the end", "f1: 0.3 at the end"]
    assert [line.get_xydata().tolist() for line in f1.lines] == [[[4, 0.3]]]  # nothing at best to mark


def test_many_metrics_stand_in_columns(tmp_path):
    log = [*LOG, *({"step": step, f"eval_metric{i}": i} for i in range(9) for step in (2, 4))]
    draw_loss_curve(log, tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == ((8 + 3 * 4) * 120, math.ceil(1.7 * 4 * 120))
