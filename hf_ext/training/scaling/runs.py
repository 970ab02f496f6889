"""Finished runs as points of a scaling law: from their folders, or from a table."""

import csv
import json
import math
from pathlib import Path

from transformers import AutoConfig
from transformers.trainer_utils import get_last_checkpoint

from hf_ext.training.recipe_yaml import read_yaml
from hf_ext.training.scaling.parameters import count_parameters
from hf_ext.training.scaling.scaling_law import Run


COLUMNS = ("parameters", "tokens", "loss")


def read_runs(paths: list[str | Path]) -> list[Run]:
    """The runs of folders, as a Trainer leaves them, and of CSV files.

    Args:
        paths: folders with config.json and trainer_state.json (or a checkpoint that has it), or CSVs with the columns
            parameters, tokens, loss (nats a token), and name if there is one.

    Raises:
        ValueError: one line that names the file, for what is missing or can't be read.
    """
    runs = []
    for path in map(Path, paths):
        if path.is_dir():
            runs.append(read_run(path))
        elif path.is_file():
            runs += read_table(path)
        else:
            raise ValueError(f"{path}: no such folder or file")
    return runs


def read_table(path: Path) -> list[Run]:
    """The rows of a CSV, see `read_runs`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8, byte {error.start}; save it as a CSV in UTF-8") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        there = ", ".join(rows[0]) if rows else "none"
        raise ValueError(f"{path}: has no column {missing[0]}; its columns are {there}, it needs {', '.join(COLUMNS)}")
    runs = []
    for number, row in enumerate(rows, start=2):
        numbers = {}
        for name in COLUMNS:
            try:
                numbers[name] = float(row[name])
            except (TypeError, ValueError):
                raise ValueError(f"{path}: line {number}: {name}={row[name]!r} is not a number") from None
        runs.append(Run(**numbers, name=f"{path}: line {number}" if not row.get("name") else row["name"]))
    return runs


def read_run(folder: Path) -> Run:
    """A run of a Trainer: N counted from its configuration, D from its steps, L its last evaluation loss.

    Tokens are what the Trainer counted (`include_num_input_tokens_seen`), else steps times rows times `packing.row_length`
    of the recipe that ours leave beside it, of one process.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: not a run: no config.json in it")
    state_path = folder / "trainer_state.json"
    if not state_path.is_file():
        last = get_last_checkpoint(str(folder))
        if last is None or not (Path(last) / "trainer_state.json").is_file():
            raise ValueError(f"{folder}: not a run of a Trainer: no trainer_state.json in it or in a checkpoint")
        state_path = Path(last) / "trainer_state.json"
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{state_path}: not JSON; the run may have been stopped while it was written") from None
    losses = [entry["eval_loss"] for entry in state.get("log_history", []) if "eval_loss" in entry]
    if not losses:
        raise ValueError(f"{state_path}: no eval_loss in its log; evaluate at the end of the run")
    if not math.isfinite(losses[-1]):
        raise ValueError(f"{state_path}: eval_loss={losses[-1]}: the run failed; leave it out")
    parameters = count_parameters(AutoConfig.from_pretrained(folder, trust_remote_code=False)).total
    return Run(parameters, _tokens_of(folder, state), losses[-1], name=str(folder))


def _tokens_of(folder: Path, state: dict) -> float:
    if state.get("num_input_tokens_seen"):
        return state["num_input_tokens_seen"]
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise ValueError(
            f"{folder}: the number of its tokens isn't known; train with include_num_input_tokens_seen, or write a CSV"
        )
    sections = read_yaml(recipe)
    training = sections.get("training") or {}
    row_length = (sections.get("packing") or {}).get("row_length", 512)
    return (
        state["global_step"] * state["train_batch_size"] * training.get("gradient_accumulation_steps", 1) * row_length
    )
