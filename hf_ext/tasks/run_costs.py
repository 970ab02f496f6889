"""What a run has cost, over all the processes that trained it one after another: `run_costs.json` in its folder."""

import json
from dataclasses import asdict
from pathlib import Path

from hf_ext.training.run_cost import JOULES_A_WATT_HOUR, WATTS_A_CORE, WATTS_A_GIGABYTE, CostMeter, RunCost


COSTS = "run_costs.json"


class RunCosts:
    """Counts from when it is made; `note` adds this process's part to those before it.

    A part is what `RunCost` has, with the steps that it trained, `from_step` (that it began after) and `to_step`, and the
    number of `processes` that trained together, of which the first measures and the others are taken to have done alike.

    Args:
        folder: of the run. first_step: steps that were done before. num_processes: that train together.
    """

    def __init__(self, folder: Path, first_step: int, num_processes: int):
        self.file, self.first_step, self.num_processes = folder / COSTS, first_step, num_processes
        self.meter = CostMeter()
        self.earlier = json.loads(self.file.read_text(encoding="utf-8")) if first_step and self.file.is_file() else []
        self.parts = list(self.earlier)

    def note(self, step: int) -> None:
        """Write what this process took, up to now and up to `step`; of one that trained nothing, nothing is kept."""
        if step <= self.first_step:
            return
        steps = {"from_step": self.first_step, "to_step": step, "processes": self.num_processes}
        self.parts = [*self.earlier, steps | asdict(self.meter.read())]
        self.file.write_text(json.dumps(self.parts, indent=2) + "\n", encoding="utf-8")

    def rows(self, last_step: int) -> dict[str, str]:
        """For the card: time, energy, and the steps that nobody measured."""
        if not self.parts:
            return {"energy": "not measured"}
        costs = [(part["processes"], _cost(part)) for part in self.parts]
        total = RunCost(
            seconds=sum(cost.seconds for _, cost in costs),
            cpu_seconds=sum(n * cost.cpu_seconds for n, cost in costs),
            memory_bytes=max(n * cost.memory_bytes for n, cost in costs),
        )
        memory = sum(n * cost.memory_joules for n, cost in costs) / JOULES_A_WATT_HOUR
        gpus = [n * cost.gpu_joules for n, cost in costs if cost.gpu_joules is not None]
        processor = total.processor_joules / JOULES_A_WATT_HOUR
        counted = sum(gpus) / JOULES_A_WATT_HOUR
        said = (
            f"{processor + memory + counted:.3g} Wh: {processor:.3g} for {total.cpu_seconds:,.0f} s of CPU time at an "
            f"assumed {WATTS_A_CORE:g} W a busy core, {memory:.3g} for memory at {WATTS_A_GIGABYTE:g} W a GB"
        )
        if gpus:
            said += f", {counted:.3g} by the GPUs' own counters"
        rows = {
            "the whole run": f"{total.seconds:,.0f} s, {total.cpu_seconds:,.0f} s of CPU time, at most "
            f"{total.memory_bytes / 1e9:.2f} GB of memory",
            "energy, an estimate": f"{said}; the rest of the machine and its cooling are not in it",
        }
        if missing := steps_without_cost(self.parts, last_step):
            rows["not measured"] = f"{missing:,} of {last_step:,} steps, by a process that ended before it could say"
        return rows


def steps_without_cost(parts: list[dict], last_step: int) -> int:
    """Steps up to `last_step` that no part covers; a step that was lost and trained again is covered twice."""
    covered, missing = 0, 0
    for part in sorted(parts, key=lambda part: part["from_step"]):
        missing += max(0, part["from_step"] - covered)
        covered = max(covered, part["to_step"])
    return missing + max(0, last_step - covered)


def _cost(part: dict) -> RunCost:
    return RunCost(**{name: part[name] for name in RunCost.__dataclass_fields__})
