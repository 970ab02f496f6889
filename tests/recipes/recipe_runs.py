"""A recipe's script as a user runs it, and what it leaves."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest

from hf_ext.tasks import writing_run
from hf_ext.training import recipe as recipe_room
from hf_ext.training.recipe import Recipe, run_recipe_main


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


class _Read(Exception):  # noqa: N818
    """Ends a recipe's script once its recipe is read."""


def recipe_of_command(argv: list[str], monkeypatch) -> Recipe:
    """What `python argv` would run, read as the script reads it: (script, YAML, overrides)."""
    read = recipe_room.load_recipe

    def stop_there(argv, sections):
        raise _Read(read(argv, sections))

    with monkeypatch.context() as patched:
        patched.chdir(ROOT)
        patched.setattr(recipe_room, "load_recipe", stop_there)
        patched.setattr(writing_run, "load_recipe", stop_there)
        with pytest.raises(_Read) as caught:
            runpy.run_path(str(ROOT / argv[0]))["main"](argv[1:])
    return caught.value.args[0]


def read_lines(path: Path) -> list[dict]:
    """A file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_results(folder: Path) -> dict:
    """A run's `all_results.json`."""
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def use_as_the_card_says(folder: Path) -> str:
    """Runs the lines of a card's "Use it" beside the folder; what they print."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^## Use it\n\n```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    with chdir(folder.parent), redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, f"{folder.name}/README.md", "exec"), {})
    return printed.getvalue()
