"""Checkpoints: on the disk before they have their name, verified to the bit, another run's refused by what differs."""

import json
import os
import pickle
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import datasets
import pytest
import torch
from models.decoder_grid import make_model
from torch.utils.data import DataLoader
from training.test_trainer import make_trainer, rows
from transformers import TrainerCallback

from hf_ext.objectives import MaskedCollator
from hf_ext.training.checkpoints import disk_space
from hf_ext.training.checkpoints.batch_draws import DrawsByBatch
from hf_ext.training.checkpoints.disk_space import checkpoint_bytes
from hf_ext.training.checkpoints.folders import CheckpointError, checkpoints_in
from hf_ext.training.checkpoints.manifest import BrokenCheckpointError, read_manifest, verify
from hf_ext.training.checkpoints.resume import newest_verified
from hf_ext.training.checkpoints.stop_request import StoppedBySignal


# an estimate: headers, names and small files beside the tensors
SIZE = 0.05
SAVING = {"save_strategy": "steps", "save_steps": 1, "report_to": "none", "seed": 5}


def saved_run(folder: Path, **arguments) -> Path:
    """The last of three checkpoints."""
    make_trainer(folder, **{**SAVING, **arguments}).train()
    return folder / "checkpoint-3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run's folder that no test changes."""
    return saved_run(tmp_path_factory.mktemp("whole")).parent


@pytest.fixture
def run_folder(whole, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


def test_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(tmp_path, monkeypatch):
    events = []

    def noted(name, function):
        def call(*args, **kwargs):
            if name == "fsync":
                events.append((name, Path(os.readlink(f"/proc/self/fd/{args[0]}"))))
            else:
                events.append((name, Path(args[1] if len(args) > 1 else args[0])))
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    last = saved_run(tmp_path, max_steps=3, save_total_limit=1)
    monkeypatch.undo()
    unfinished = tmp_path / "_unfinished-checkpoint-3"
    begin = max(i for i, event in enumerate(events) if event == ("rename", tmp_path / "checkpoint-2")) + 1
    events = events[begin:]
    manifest = events.index(("replace", unfinished / "manifest.json"))
    named = events.index(("rename", last))
    removed = events.index(("rename", tmp_path / "_unfinished-old-checkpoint-2"))
    for name in read_manifest(last).files:
        assert events.index(("fsync", unfinished / name)) < manifest, name
    assert ("fsync", unfinished / "manifest.json.part") in events[:manifest]
    assert ("fsync", unfinished) in events[:manifest]
    assert ("fsync", unfinished) in events[manifest:named]
    assert ("fsync", tmp_path) in events[named:removed]
    assert checkpoints_in(tmp_path) == [last]


def test_each_bit_of_each_file_counts(run_folder):
    last = run_folder / "checkpoint-3"
    files = [*verify(last).files, "manifest.json"]
    assert {
        "model.safetensors",
        "config.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } < set(files)
    assert all(path.name in files for path in last.iterdir())
    for name in files:
        whole = (last / name).read_bytes()
        for place in (0, 0.3, 0.5, 0.8, 1):
            flip(last / name, place)
            with pytest.raises(
                BrokenCheckpointError, match=rf"^checkpoint-3: {name} (isn't what was saved|is of format)"
            ):
                verify(last)
            (last / name).write_bytes(whole)
        for shorter in (whole[:-1], b""):
            (last / name).write_bytes(shorter)
            with pytest.raises(BrokenCheckpointError, match=rf"^checkpoint-3: {name} (has [\d,]+ bytes|isn't what)"):
                verify(last)
        (last / name).unlink()
        with pytest.raises(BrokenCheckpointError, match=rf"^checkpoint-3: {name} is missing$"):
            verify(last)
        (last / name).write_bytes(whole)
    assert verify(last).step == 3


def test_the_newest_that_verifies_is_taken_and_the_others_set_aside(run_folder, caplog):
    flip(run_folder / "checkpoint-3" / "optimizer.pt", 0.5)
    (run_folder / "_unfinished-checkpoint-4").mkdir()
    trainer = make_trainer(run_folder, **SAVING)
    with caplog.at_level("WARNING"):
        assert trainer.checked_checkpoint(True) == str(run_folder / "checkpoint-2")
    assert (
        "checkpoint-3: optimizer.pt isn't what was saved (its sha256 differs); set aside as _broken-checkpoint-3"
        in caplog.text
    )
    names = {path.name for path in run_folder.iterdir() if path.is_dir()}
    assert {"checkpoint-1", "checkpoint-2", "_broken-checkpoint-3"} <= names
    assert not any("_unfinished" in name for name in names)
    # a path is not replaced by another
    flip(run_folder / "checkpoint-2" / "config.json", 0.5)
    with pytest.raises(BrokenCheckpointError, match=r"checkpoint-2: config\.json isn't what was saved"):
        trainer.train(str(run_folder / "checkpoint-2"))
    (run_folder / "checkpoint-1" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"resume_from_checkpoint=True: no checkpoint in '.*run'; start anew"):
        trainer.train(True)
    assert newest_verified(run_folder) == (None, [])


def test_going_back_sets_the_later_ones_aside(run_folder):
    before = torch.load(run_folder / "checkpoint-3" / "optimizer.pt", weights_only=True)
    make_trainer(run_folder, **SAVING).train(str(run_folder / "checkpoint-1"))
    names = {path.name for path in run_folder.iterdir() if "checkpoint" in path.name}
    assert names == {"checkpoint-1", "checkpoint-2", "checkpoint-3", "_later-checkpoint-2", "_later-checkpoint-3"}
    after = torch.load(run_folder / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert all(torch.equal(after["state"][i]["exp_avg"], state["exp_avg"]) for i, state in before["state"].items())


def test_a_run_elsewhere_leaves_the_other_folder_alone(whole, tmp_path):
    make_trainer(tmp_path, **SAVING).train(str(whole / "checkpoint-1"))
    assert [path.name for path in checkpoints_in(whole)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def other_rows():
    changed = rows()
    changed[7] = {"input_ids": changed[7]["input_ids"].flip(0)}
    return changed


# what is asked for now -> the line, and what allows it (None: nothing does)
CHANGES = {
    "seed": ({"seed": 6}, r"training.seed=6: checkpoint-3 was trained with 5; .*--allow_change seed", "seed"),
    "batch": ({"per_device_train_batch_size": 4}, r"training.per_device_train_batch_size=4: .* with 8;", "batch"),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        r"training.gradient_accumulation_steps=2: .* with 1;",
        "batch",
    ),
    "rate": ({"learning_rate": 1e-3}, r"training.learning_rate=0.001: .* with 0.01; .*_change optimizer", "optimizer"),
    "precision": ({"bf16": True}, r"training.bf16=True: checkpoint-3 was trained with False;", "precision"),
    "rows": ({"data": other_rows()}, r"data: other rows than checkpoint-3 was trained on; .*_change data", "data"),
    "fewer rows": ({"data": rows()[:-1]}, r"data: other rows than checkpoint-3 was trained on;", "data"),
    "optimizer": (
        {"optim": "sgd"},
        r"training.optim='sgd': checkpoint-3 was trained with 'adamw.*anew in .* folder$",
        None,
    ),
    "model": (
        {"model": {"intermediate_size": 40}},
        r"model.intermediate_size=40: checkpoint-3 was trained with \d+; .*--allow_change model",
        None,
    ),
    "dropout": ({"model": {"hidden_dropout": 0.5}}, r"model.hidden_dropout=0.5: checkpoint-3 .* with 0.0;", "model"),
    "attention": ({"model": {"attention": "eager"}}, r"attention='eager': checkpoint-3 was trained", "kernels"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_refused_by_what_differs(name, whole, tmp_path):
    given, line, allowed_by = CHANGES[name]
    given = dict(given)
    if "model" in given:
        given["model"] = make_model(tie_word_embeddings=True, **given["model"])
    trainer = make_trainer(tmp_path, **{**SAVING, **given, "max_steps": 4})
    with pytest.raises(ValueError, match=f"^{line}") as caught:
        trainer.train(str(whole / "checkpoint-3"))
    assert "\n" not in str(caught.value)
    if allowed_by is not None:
        trainer.allow_change = (allowed_by,)
        trainer.train(str(whole / "checkpoint-3"))
        assert trainer.state.global_step == 4
    elif name == "model":  # shapes that don't fit are never allowed
        trainer.allow_change = ("model",)
        with pytest.raises(
            ValueError, match="model: its parameters have other names or shapes than those of checkpoint-3"
        ):
            trainer.train(str(whole / "checkpoint-3"))


def test_versions_and_sections_are_compared(whole, run_folder):
    trainer = make_trainer(run_folder, **SAVING)
    trainer.run_sections = {"tokenizer": {"vocab_size": 97}}
    with pytest.raises(
        ValueError, match=r"tokenizer: \{'vocab_size': 97\} is not what checkpoint-3 was trained with, \{\};"
    ):
        trainer.train(True)
    from hf_ext.training.checkpoints import fingerprint

    trainer.run_sections, trainer._fingerprint = None, None
    versions = fingerprint._version
    fingerprint._version = lambda package: "0.1" if package == "torch" else versions(package)
    try:
        with pytest.raises(ValueError, match=r"torch='0.1': checkpoint-3 was trained with '.*--allow_change versions"):
            trainer.train(True)
    finally:
        fingerprint._version = versions


def test_rows_of_a_data_set_are_compared_as_they_are_stored(tmp_path):
    def data(last):
        rows_of_ids = [{"input_ids": row["input_ids"].tolist()} for row in rows()]
        return datasets.Dataset.from_list([*rows_of_ids[:-1], {"input_ids": last}])

    last = saved_run(tmp_path, data=data([5, 6, 7]))
    make_trainer(tmp_path / "b", data=data([5, 6, 7]), **SAVING, max_steps=4).train(str(last))
    with pytest.raises(ValueError, match="data: other rows than"):
        make_trainer(tmp_path / "c", data=data([5, 6, 8]), **SAVING).train(str(last))


def test_a_rate_that_may_change_does(whole, tmp_path):
    """Stock: what is loaded overwrites the rate that is asked for, without a word."""
    trainer = make_trainer(tmp_path, **{**SAVING, "learning_rate": 1e-3, "weight_decay": 0.2, "max_steps": 6})
    trainer.allow_change = ("optimizer",)
    rates = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    trainer.add_callback(Watch())
    trainer.train(str(whole / "checkpoint-3"))
    assert rates == [pytest.approx((1e-3 * (6 - step) / 6, 0.2)) for step in (3, 4, 5)]  # linear to 0


def test_what_an_exact_resume_lacks_is_named(tmp_path):
    last = saved_run(tmp_path / "run", save_only_model=True)
    with pytest.raises(ValueError, match=r"^checkpoint-3: holds no file of the schedule's state.*\(was it saved with"):
        make_trainer(tmp_path / "run", **SAVING).train(str(last))
    last = saved_run(tmp_path / "other")
    (last / "rng_state.pth").rename(last / "rng_state_0.pth")
    with pytest.raises(BrokenCheckpointError, match=r"checkpoint-3: rng_state\.pth is missing"):
        make_trainer(tmp_path / "other", **SAVING).train(str(last))


def test_nothing_is_pickled_that_runs_what_it_pleases(run_folder, monkeypatch):
    assert not list(run_folder.rglob("training_args.bin"))
    saved = json.loads((run_folder / "checkpoint-3" / "training_args.json").read_text())
    assert (saved["seed"], saved["learning_rate"]) == (5, 1e-2)
    load, loaded = torch.load, []

    def checked(path, *args, **kwargs):
        assert kwargs["weights_only"] is True
        loaded.append(Path(path).name)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", checked)
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, lambda *args, **kwargs: pytest.fail("pickle"))
    trainer = make_trainer(run_folder, **{**SAVING, "max_steps": 4})
    trainer.train(True)
    assert sorted(loaded) == ["optimizer.pt", "rng_state.pth", "scheduler.pt"]
    trainer.save_model()
    assert not list(run_folder.rglob("training_args.bin"))
    assert (run_folder / "training_args.json").is_file()


class Terminate(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("strategy", ["no", "steps", "best"])
def test_asked_to_end_it_saves_once_and_stops(strategy, tmp_path):
    """Also where the step is due to be evaluated, and is not the best."""
    before = signal.getsignal(signal.SIGTERM)
    options = {**SAVING, "save_strategy": strategy, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True}  # it falls: the first is the best
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(Terminate())
    with pytest.raises(StoppedBySignal) as stopped:
        trainer.train()
    assert stopped.value.code == 75
    assert stopped.value.checkpoint == str(tmp_path / "checkpoint-2")
    assert verify(stopped.value.checkpoint).step == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.state.global_step == 2
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [1, 2]


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**9, 0, 4 * 10**6))
    trainer = make_trainer(tmp_path, **{**SAVING, "max_steps": 40})
    with pytest.raises(
        ValueError, match=r"training.output_dir='.*': 40 checkpoints of [\d.]+ MB take [\d.]+ MB, 4.0 MB"
    ) as e:
        trainer.train()
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())
    make_trainer(tmp_path, **{**SAVING, "max_steps": 2, "save_total_limit": 1}).train()  # two are there at once
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**9, 0, 10**6))
    with pytest.raises(ValueError, match="2 checkpoints of"):
        make_trainer(tmp_path / "b", **{**SAVING, "max_steps": 40, "save_steps": 20, "ema_decay": 0.9}).train()
    make_trainer(tmp_path / "c", **{**SAVING, "save_strategy": "no", "max_steps": 40}).train()


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.9}, {"optim": "sgd"}, {"matrix_optimizer": "muon"}, {"save_only_model": True}],
    ids=str,
)
def test_the_estimate_is_what_is_written(options, tmp_path, monkeypatch):
    model = make_model(hidden_size=256, intermediate_size=1024, tie_word_embeddings=True)
    trainer = make_trainer(tmp_path, model=model, **{**SAVING, "max_steps": 1, **options})
    trainer.train()
    found = read_manifest(tmp_path / "checkpoint-1").num_bytes
    estimate = checkpoint_bytes(model, trainer.optimizer, trainer.args, engine="one process") - disk_space.FIXED_BYTES
    assert estimate == pytest.approx(found, rel=SIZE)


def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **SAVING)
    save = torch.save

    def full(content, path, *args, **kwargs):
        save(content, path, *args, **kwargs)
        if "checkpoint-2" in str(path) and str(path).endswith("optimizer.pt"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError) as failed:
        trainer.train()
    assert str(failed.value) == (
        f"{tmp_path}/checkpoint-2: couldn't be written (No space left on device); checkpoint-1 before it is intact, "
        "--resume goes on from there; make space on the disk"
    )
    assert [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name] == ["checkpoint-1"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_draws_the_same_whenever_it_is_collated(workers):
    collator = MaskedCollator(vocab_size=97, pad_token_id=0, mask_token_id=2, special_token_ids=(0, 1, 2))
    data = [{"input_ids": row["input_ids"].tolist()} for row in rows()]

    def batches(epoch, first=0, workers=0, seed=3, process_index=0):
        draws = DrawsByBatch(collator, seed=seed, process_index=process_index)
        draws.begin(epoch, first)
        sampler = [list(range(i, i + 2)) for i in range(2 * first, 16, 2)]
        torch.manual_seed(len(sampler))  # whatever the state is
        return [
            batch["labels"] for batch in DataLoader(data, batch_sampler=sampler, collate_fn=draws, num_workers=workers)
        ]

    expected = batches(1)
    for first in (0, 3):
        found = batches(1, first, workers)
        assert len(found) == 8 - first
        assert all(torch.equal(a, b) for a, b in zip(found, expected[first:], strict=True))
    for other in (batches(2), batches(1, seed=4), batches(1, process_index=1)):
        assert sum(torch.equal(a, b) for a, b in zip(other, expected, strict=True)) < 3


def test_collating_takes_no_draw_from_training():
    draws = DrawsByBatch(lambda batch: torch.rand(3), seed=1)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first, second = draws([]), draws([])
    assert not torch.equal(first, second)
    assert torch.equal(torch.rand(2), expected)


def test_a_manifest_tells_what_a_user_wants_to_know(whole):
    manifest = read_manifest(whole / "checkpoint-2")
    assert manifest.step == 2
    assert manifest.num_bytes == sum((whole / "checkpoint-2" / name).stat().st_size for name in manifest.files)
    assert manifest.fingerprint["processes"] == {"world_size": 1, "devices": 0, "engine": "one process"}
    assert manifest.fingerprint["seed"] == {"seed": 5, "data_seed": None}
