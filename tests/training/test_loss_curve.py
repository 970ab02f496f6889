"""The picture exists, shows what is there, and says so where there is nothing."""

import math
import struct

import pytest

from hf_ext.training.loss_curve import draw_loss_curve


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
