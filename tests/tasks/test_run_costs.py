"""What a run has cost over all its processes, and which of its steps nobody measured."""

import json

import pytest

from hf_ext.tasks.run_costs import COSTS, RunCosts, steps_without_cost
from hf_ext.training.run_cost import RunCost


class Meter:
    """In place of a `CostMeter`."""

    def __init__(self, **values):
        self.cost = RunCost(**{"seconds": 100.0, "cpu_seconds": 150.0, "memory_bytes": 10**9, **values})

    def read(self):
        return self.cost


def costs(folder, first_step=0, num_processes=1, **values):
    made = RunCosts(folder, first_step, num_processes)
    made.meter = Meter(**values)
    return made


def test_a_run_in_two_parts_is_their_sum(tmp_path):
    costs(tmp_path).note(40)
    second = costs(tmp_path, first_step=30, seconds=50.0, memory_bytes=2 * 10**9)
    second.note(60)
    second.note(70)  # the same process, later
    assert [(p["from_step"], p["to_step"]) for p in json.loads((tmp_path / COSTS).read_text())] == [(0, 40), (30, 70)]
    rows = second.rows(70)
    assert rows["the whole run"] == "150 s, 300 s of CPU time, at most 2.00 GB of memory"
    # 300 s · 12 W, and 0.3725 W/GB · (100 s · 1 GB + 50 s · 2 GB)
    assert rows["energy, an estimate"].startswith(
        "1.02 Wh: 1 for 300 s of CPU time at an assumed 12 W a busy core, 0.0207 for"
    )
    assert "not measured" not in rows
    assert "counters" not in rows["energy, an estimate"]


def test_processes_that_train_together_count_each(tmp_path):
    made = costs(tmp_path, num_processes=4, gpu_joules=3600.0)
    made.note(10)
    rows = made.rows(10)
    assert rows["the whole run"] == "100 s, 600 s of CPU time, at most 4.00 GB of memory"
    assert "4 by the GPUs' own counters" in rows["energy, an estimate"]


def test_steps_of_a_killed_process_are_said_to_be_missing(tmp_path):
    costs(tmp_path).note(20)
    made = costs(tmp_path, first_step=50)
    made.note(80)
    assert made.rows(80)["not measured"].startswith("30 of 80 steps")


@pytest.mark.parametrize(
    ("parts", "missing"), [([], 9), ([(0, 9)], 0), ([(0, 4), (2, 9)], 0), ([(3, 5)], 7), ([(4, 9), (0, 2)], 2)]
)
def test_coverage(parts, missing):
    assert steps_without_cost([{"from_step": a, "to_step": b} for a, b in parts], 9) == missing


def test_a_process_that_trained_nothing_changes_nothing(tmp_path):
    costs(tmp_path).note(40)
    before = (tmp_path / COSTS).read_text()
    again = costs(tmp_path, first_step=40)
    again.note(40)
    assert (tmp_path / COSTS).read_text() == before
    assert "150 s of CPU time" in again.rows(40)["the whole run"]
    assert RunCosts(tmp_path / "new", 40, 1).rows(40) == {"energy": "not measured"}
