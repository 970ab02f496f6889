"""A recipe's script as a user runs it, and what it leaves."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ext.training.recipe import run_recipe_main


ROOT = Path(__file__).parents[2]


def run_script(script: str | Path, *argv, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """`python script argv` in a process of its own, offline; the script is named from the project's root."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def refusal(script: str | Path, argv, monkeypatch, capsys) -> str:
    """The one line by which a script refuses `argv`, with exit code 2; in this process, which has imported all it takes."""
    main = runpy.run_path(str(ROOT / script))["main"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        run_recipe_main(main)
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def read_lines(path: Path) -> list[dict]:
    """A file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_results(folder: Path) -> dict:
    """A run's `all_results.json`."""
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
