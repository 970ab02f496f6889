"""`hf-ext run -- CMD`: any other tool, with our architectures registered in its processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import typer


EXAMPLE = """Example:

  hf-ext run -- lm_eval --model hf --model_args pretrained=outputs/quickstart --tasks lambada_openai

  hf-ext run -- python script.py

  hf-ext run -- accelerate launch train.py
"""
# holds a sitecustomize.py, which each interpreter imports that finds the folder in PYTHONPATH
REGISTERING = Path(__file__).with_name("registering")
NOT_FOUND = 127


def add_to(app: typer.Typer) -> None:
    app.command(
        "run",
        epilog=EXAMPLE,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
        options_metavar="-- COMMAND [ARGUMENT ...]",
    )(run)


def run(context: typer.Context) -> None:
    """Run a Python script, a module (`python -m …`) or a console script as if its first line were `import hf_ext`.

    The process and the Python processes that it starts import hf_ext as soon as one of them has imported transformers. The
    command takes this process's place: its signals, output and exit code are its own.
    """
    words = list(context.args)
    if not words:
        raise typer.BadParameter("names no command; write hf-ext run -- python script.py", context)
    command = find_program(words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_paths())}
    if os.name == "posix":
        sys.stdout.flush()
        os.execve(command[0], command, environment)
    raise typer.Exit(
        subprocess.run(command, env=environment, check=False).returncode
    )  # Windows has no exec of this kind


def find_program(words: list[str]) -> list[str]:
    """The command with its program as a path; `python` and a script are this interpreter's, which has hf_ext.

    Raises:
        SystemExit(127): there is no such program, as shells say it.
    """
    program, *rest = words
    if program in ("python", "python3"):
        return [sys.executable, *rest]
    if program.endswith(".py"):
        return [sys.executable, *words]
    beside = Path(sys.executable).parent  # of a virtual environment that isn't activated
    found = (
        shutil.which(program) if os.sep in program else shutil.which(program, path=str(beside)) or shutil.which(program)
    )
    if found is None:
        typer.echo(f"error: hf-ext run: {program}: no such command here; install it, or give its path", err=True)
        raise SystemExit(NOT_FOUND)
    return [found, *rest]


def _paths() -> list[str]:
    """PYTHONPATH with our folder first, and what it was."""
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(REGISTERING)]
    return [str(REGISTERING), *before]
