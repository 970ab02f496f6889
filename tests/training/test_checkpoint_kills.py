"""Runs killed at every stage of a save and at random, stopped, on a full disk, with flipped bits: gone on with, they end
in the weights of the uninterrupted run, bit for bit. The processes are in checkpoint_runs.py.
"""

import json
import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_ext.training.checkpoints.stop_request import STOPPED_EXIT_CODE


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
    ended = set(found["codes"] or codes)
    if KILLED in ended and found.get("processes", 1) > 1:
        ended.discard(1)  # the other may notice before it is killed too
    assert ended <= codes, what
    everywhere = [0] * found.get("processes", 1)
    assert found.get("resumed_codes", everywhere) == everywhere, (
        what
    )  # none where the run had ended before it was killed
    assert found["equal"], what
    left = [name for name in found["resumed_folders"] if name.startswith("_unfinished")]
    assert not left, what


def assert_all_exact(found: list[dict], codes: set[int], *, at_least: int) -> None:
    assert len(found) >= at_least
    for case in found:
        assert_exact(case, codes)


def kill(name: str, number: int = 1, **event) -> dict:
    return {"kind": "kill", "name": name, "operation": number, **event}


# a save from its first change on the disk to the deletion of the checkpoint before
STAGES = [
    kill("mkdir"),
    kill("save_file", half=True),
    kill("torch.save", 2, half=True),
    kill("save_to_json", half=True),
    kill("fsync", 4),
    kill("replace"),
    kill("rename", 1),
    kill("rename", 2),
    kill("unlink", 4),
    kill("rmdir"),
]
IN_THE_MIDST = kill("torch.save", 2)
SHORT = {
    "stages": [{"variant": "rows", "arguments": {"save_total_limit": 1}, "event": event} for event in STAGES],
    "variants": [{"variant": v, "event": IN_THE_MIDST} for v in ("workers", "stream", "packed", "lora", "tokens")],
    "two": [{"variant": "rows", "processes": 2, "event": IN_THE_MIDST}],
    "stops": [
        {"variant": "workers", "event": {"kind": "sigterm", "step": 2, "group": True}},
        {"variant": "rows", "processes": 2, "event": {"kind": "sigterm", "step": 2, "rank": 1}},
    ],
    "full": [
        {"variant": "packed", "event": {"kind": "full_disk", "bytes": 40_000}},
        {"variant": "rows", "processes": 2, "event": {"kind": "full_disk", "bytes": 150_000}},
        {"variant": "packed", "event": {"kind": "full_tmpfs"}},
    ],
    "flips": [
        {"variant": "packed", "event": {"kind": "flip", "file": name}} for name in ("optimizer.pt", "manifest.json")
    ],
}


@pytest.mark.heavy
def test_killed_asked_to_end_on_full_disks_and_with_flipped_bits(tmp_path):
    """The short form: all of it by one process that forks, which takes its time to import."""
    cases = [{**case, "part": part} for part, of_part in SHORT.items() for case in of_part]
    everything = run_cases(tmp_path, cases)
    found = {part: [case for case in everything if case["part"] == part] for part in SHORT}
    for part, codes in {
        "stages": KILLED,
        "variants": KILLED,
        "two": KILLED,
        "stops": STOPPED_EXIT_CODE,
        "full": 2,
    }.items():
        assert_all_exact(found[part], {codes}, at_least=len(SHORT[part]))
    # some were killed before the checkpoint was there, some after, some while the one before was deleted
    left = {tuple(case["folders"]) for case in found["stages"]}
    assert {("_unfinished-checkpoint-4", "checkpoint-2"), ("checkpoint-2", "checkpoint-4")} <= left
    assert ("_unfinished-old-checkpoint-2", "checkpoint-4") in left
    for case in found["stops"]:
        assert "checkpoint-3" in case["folders"]  # the step that ran is saved, on all processes the same
        assert "checkpoint-3 is saved; --resume goes on from there (exit code 75)" in case["log"]
    for case in found["full"]:
        if "skipped" not in case:
            assert case["folders"] == ["checkpoint-2"]  # the one before is intact, nothing of the other is left
            errors = [line for line in case["log"].splitlines() if line.startswith("error: ")]
            assert len(errors) == case.get("processes", 1)
            assert all("checkpoint-4: couldn't be written (" in line for line in errors)
            assert all("checkpoint-2 before it is intact, --resume goes on from there" in line for line in errors)
    for case in found["flips"]:
        assert_exact(case, {0})
        assert f"checkpoint-4: {case['event']['file']} isn't what was saved" in case["resumed_log"]
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
    assert_all_exact(run_cases(tmp_path, cases), {KILLED}, at_least=20 if processes == 1 else 15)
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
    # the files were counted in the last checkpoint; the one that loses a bit is that of step 4
    files = [re.sub(r"^global_step\d+/", "global_step4/", name) for name in counted["files"]]
    flips = [{**same, "event": {"kind": "flip", "file": name}} for name in files]
    assert_all_exact(run_cases(tmp_path, flips), {0}, at_least=8)


@pytest.mark.full
@pytest.mark.heavy
@pytest.mark.parametrize(("variant", "processes"), [("fsdp2", 2), ("tp", 2), ("tp_fsdp2", 4)])
def test_states_of_weights_in_parts(variant, processes, tmp_path):
    counted = count(tmp_path, variant, processes)
    parts = [f"optimizer_{rank}.safetensors" for rank in range(processes)]
    assert {"model.safetensors", "optimizer_parts.json", *parts} <= set(counted["files"])
    cases = kills(counted, every=False)
    same = {"variant": variant, "processes": processes}
    # the part of a process that isn't the first: before it, and in its midst
    own = [kill("save_file", rank=processes - 1), kill("save_file", rank=processes - 1, half=True)]
    cases += [{**same, "event": event} for event in (*own, kill("torch.save", rank=processes - 1))]
    assert_all_exact(run_cases(tmp_path, cases), {KILLED}, at_least=13)
    stops = [{**same, "event": {"kind": "sigterm", "step": 2, "rank": processes - 1}}]
    assert_all_exact(run_cases(tmp_path, stops), {STOPPED_EXIT_CODE}, at_least=1)
    full = [{**same, "event": {"kind": "full_disk", "bytes": 20_000}}]
    assert_all_exact(run_cases(tmp_path, full), {2}, at_least=1)
    flips = [{**same, "event": {"kind": "flip", "file": name}} for name in counted["files"]]
    assert_all_exact(run_cases(tmp_path, flips), {0}, at_least=8)
