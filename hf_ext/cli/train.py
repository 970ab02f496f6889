"""`hf-ext train`: a recipe, by the script of its task."""

import runpy
import sys
from pathlib import Path

import typer

from hf_ext.cli.recipe_scripts import find_script, recipes_folder, scripts
from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext train recipes/text_classification/debug.yaml --training.output_dir outputs/verdicts

  hf-ext train translation mine.yaml --training.learning_rate 3e-4 --resume auto
"""


def add_to(app: typer.Typer) -> None:
    app.command(
        "train",
        epilog=EXAMPLE,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        options_metavar="[TASK | SCRIPT.py] RECIPE.yaml [--section.field VALUE ...] [--resume [auto | CHECKPOINT]]",
    )(train)


def train(context: typer.Context) -> None:
    """Train a model by a recipe: what `python recipes/TASK/train.py RECIPE.yaml …` does.

    TASK may be left out where the recipe's first comment names it or its folder has its name. Every field of the recipe can
    be overridden; `hf-ext train RECIPE.yaml --help` lists them. On several processes:
    `accelerate launch -m hf_ext train RECIPE.yaml`.
    """
    words = list(context.args)
    if not words or words in (["--help"], ["-h"]):
        typer.echo(context.get_help())
        typer.echo(f"\nTasks: {_tasks()}")
        return
    script, rest = find_script(words)
    work(lambda: run_script(script, rest))


def _tasks() -> str:
    try:
        return ", ".join(scripts(recipes_folder()))
    except ValueError as error:
        return str(error)


def run_script(script: Path, rest: list[str]) -> None:
    """Run a script as `python script.py …` would, in this process: its exit code is this one's."""
    before = sys.argv
    sys.argv = [str(script), *rest]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
