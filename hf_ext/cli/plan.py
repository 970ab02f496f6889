"""`hf-ext plan`: what a run will take, before it is started."""

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext plan recipes/pretraining/quickstart.yaml

  hf-ext plan path/to/config.json --batch 4 --length 4096 --zero 3 --ranks 8

  hf-ext plan --budget 1e20
"""


def add_to(app: typer.Typer) -> None:
    app.command(
        "plan",
        epilog=EXAMPLE,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        options_metavar="[RECIPE.yaml | config.json] [--budget FLOPS] [--hours HOURS] [--layout SIZE ...] [--fit RUN ...]",
    )(plan)


def plan(context: typer.Context) -> None:
    """Parameters, FLOPs and memory of a model or recipe; what a budget buys; layouts over accelerators. Allocates nothing.

    `hf-ext plan --list` explains every option; they are those of `python -m hf_ext.training.scaling`.
    """
    words = list(context.args)
    if not words or words in (["--help"], ["-h"]):
        typer.echo(context.get_help())
        return
    words = ["--help"] if words == ["--list"] else words

    def do() -> None:
        from hf_ext.training.scaling.__main__ import main

        main(words)

    work(do)
