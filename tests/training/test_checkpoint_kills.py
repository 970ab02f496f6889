"""Runs killed at every stage of a save and at random, stopped, on a full disk, with flipped bits: gone on with, they end
in the weights of the uninterrupted run, bit for bit. The processes are in checkpoint_runs.py.
"""

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_ext.training.checkpoints import STOPPED_EXIT_CODE


HERE = Path(__file__).parent
KILLED = -9
# every kind of operation that a save makes on the disk, in the order in which they first come
WRITERS = {"torch.save", "save_file", "save_to_json"}
SECONDS = 1800


def run_cases(folder: Path, cases: list[dict]) -> list[dict]:
    """Each case with what was found."""
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, str(HERE / "checkpoint_runs.py"), str(folder)],
        input=json.dumps(cases),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def count(folder: Path, variant: str, processes: int = 1, **arguments) -> dict:
    case = {"variant": variant, "processes": processes, "event": {"kind": "count"}, "arguments": arguments}
    (found,) = run_cases(folder, [case])
    return found


def kills(counted: dict, *, every: bool, **case) -> list[dict]:
    """Before each operation (or the first of each run of like ones), and with half of each file written."""
    names, cases = counted["operations"], []
    for number, name in enumerate(names, start=1):
        if every or number == 1 or names[number - 2] != name:
            cases.append({"kind": "kill", "operation": number})
        if name in WRITERS:
            cases.append({"kind": "kill", "operation": number, "half": True})
    same = {key: counted[key] for key in ("variant", "processes", "arguments")}
    return [{"name": str(event), **same, "event": {**event, **case}} for event in cases]


def assert_exact(found: dict, codes: set[int]) -> None:
    if "skipped" in found:
        return
    what = f"{found['variant']} {found['event']}: {found['codes']}\n{found['log']}\n---\n{found['resumed_log']}"
    assert set(found["codes"] or codes) <= codes, what
    assert found.get("resumed_codes", [0]) == [0] * found.get("processes", 1), what
    assert found["equal"], what
    left = [name for name in found["resumed_folders"] if name.startswith("_unfinished")]
    assert not left, what


def assert_all_exact(found: list[dict], codes: set[int], *, at_least: int) -> None:
    assert len(found) >= at_least
    for case in found:
        assert_exact(case, codes)


@pytest.mark.heavy
def test_killed_at_each_kind_of_operation_of_a_save(tmp_path):
    counted = count(tmp_path, "rows", save_total_limit=1)
    assert {"mkdir", "fsync", "replace", "rename", "unlink", "rmdir", *WRITERS} == set(counted["operations"])
    found = run_cases(tmp_path, kills(counted, every=False))
    assert_all_exact(found, {KILLED}, at_least=12)
    # one save is killed before its checkpoint is there, another after: both kinds are among them
    assert {"checkpoint-2", "checkpoint-4"} <= {name for case in found for name in case["folders"]}


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
def test_what_training_can_be_made_of(processes, tmp_path):
    """One kill in the midst of a save, each: loader workers and masks, streams, packed rows, adapters, batches by tokens."""
    variants = ["workers", "stream", "packed", "lora"] if processes == 1 else ["rows", "stream", "tokens"]
    kill = {"kind": "kill", "operation": 4}
    cases = [{"variant": v, "processes": processes, "event": kill} for v in variants]
    assert_all_exact(run_cases(tmp_path, cases), {KILLED}, at_least=len(variants))


@pytest.mark.heavy
def test_asked_to_end_full_disks_and_flipped_bits(tmp_path):
    stops = [
        {"variant": "workers", "event": {"kind": "sigterm", "step": 2, "group": True}},
        {"variant": "rows", "processes": 2, "event": {"kind": "sigterm", "step": 2, "rank": 1}},
    ]
    full = [
        {"variant": "rows", "event": {"kind": "full_disk", "bytes": 40_000}},
        {"variant": "rows", "processes": 2, "event": {"kind": "full_disk", "bytes": 150_000}},
        {"variant": "rows", "event": {"kind": "full_tmpfs"}},
    ]
    flips = [{"variant": "rows", "event": {"kind": "flip", "file": name}} for name in ("optimizer.pt", "manifest.json")]
    found = run_cases(tmp_path, stops + full + flips)
    for case in found[:2]:
        assert_exact(case, {STOPPED_EXIT_CODE})
        assert "checkpoint-3" in case["folders"]  # the step that ran is saved, on all processes the same
        assert "checkpoint-3 is saved; --resume goes on from there (exit code 75)" in case["log"]
    for case in found[2:5]:
        assert_exact(case, {2})
        if "skipped" not in case:
            assert case["folders"] == ["checkpoint-2"]  # the one before is intact, nothing of the other is left
            errors = [line for line in case["log"].splitlines() if line.startswith("error: ")]
            assert len(errors) == case.get("processes", 1)
            assert all("checkpoint-4: couldn't be written (" in line for line in errors)
            assert all("checkpoint-2 before it is intact, --resume goes on from there" in line for line in errors)
    for case in found[5:]:
        assert_exact(case, {0})
        name = case["event"]["file"]
        assert f"checkpoint-4: {name} isn't what was saved" in case["resumed_log"]
        assert "_broken-checkpoint-4" in case["resumed_folders"]


@pytest.mark.full
@pytest.mark.heavy
@pytest.mark.parametrize(
    "variant", ["rows", "workers", "stream", "stream_workers", "packed", "lora", "tokens", "token_stream"]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_operation_random_moments_and_every_file(variant, processes, tmp_path):
    counted = count(tmp_path, variant, processes, save_total_limit=2)
    cases = kills(counted, every=processes == 1)
    assert_all_exact(run_cases(tmp_path, cases), {KILLED}, at_least=20)
    same = {"variant": variant, "processes": processes, "arguments": {"save_total_limit": 2}}
    draw = random.Random(variant)
    moments = [{**same, "event": {"kind": "kill_after", "share": draw.random()}} for _ in range(6)]
    assert_all_exact(run_cases(tmp_path, moments), {KILLED, 0}, at_least=6)
    stops = [
        {**same, "event": {"kind": "sigterm", "step": step, "rank": processes - 1, "group": True}} for step in range(6)
    ]
    assert_all_exact(run_cases(tmp_path, stops), {STOPPED_EXIT_CODE, -15}, at_least=6)
    same = {"variant": variant, "processes": processes}
    flips = [{**same, "event": {"kind": "flip", "file": name}} for name in [*counted["files"], "manifest.json"]]
    assert_all_exact(run_cases(tmp_path, flips), {0}, at_least=7)


@pytest.mark.full
@pytest.mark.heavy
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed isn't installed")
@pytest.mark.parametrize("variant", ["zero2", "zero3"])
def test_states_that_deepspeed_writes(variant, tmp_path):
    counted = count(tmp_path, variant, processes=2)
    assert "latest" in counted["files"]
    assert_all_exact(run_cases(tmp_path, kills(counted, every=False)), {KILLED}, at_least=10)
    same = {"variant": variant, "processes": 2}
    stops = [{**same, "event": {"kind": "sigterm", "step": 2, "rank": 1}}]
    assert_all_exact(run_cases(tmp_path, stops), {STOPPED_EXIT_CODE}, at_least=1)
    flips = [{**same, "event": {"kind": "flip", "file": name}} for name in counted["files"]]
    assert_all_exact(run_cases(tmp_path, flips), {0}, at_least=8)
