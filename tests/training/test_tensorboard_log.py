"""TensorBoard's files have the run's numbers, and neither the host's name nor a path."""

import socket

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.test_trainer import make_trainer
from transformers.integrations import TensorBoardCallback


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "canaryhost")
    monkeypatch.setattr("platform.node", lambda: "canaryhost")


def test_files_without_host_and_paths(tmp_path, host, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "canaryuser"))
    output = tmp_path / "canaryuser" / "run"
    trainer = make_trainer(output, max_steps=2, logging_steps=1, report_to="tensorboard")
    trainer.train()
    trainer.log({"eval_afterwards": 3.0})  # as an evaluation after training does, into a file of its own
    files = sorted(output.glob("runs/*/events*"))
    assert len(files) == 2
    for file in files:
        assert "canary" not in str(file.relative_to(output))
        assert b"canary" not in file.read_bytes()
    events = EventAccumulator(str(files[0].parent)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    (arguments,) = events.Tensors("args/text_summary")
    assert b'"output_dir": "run"' in arguments.tensor_proto.string_val[0]


def test_other_callbacks_stay(tmp_path):
    trainer = make_trainer(tmp_path / "run", report_to="none")
    assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
