"""`hf-ext doctor`: what is installed, what will compute, and what is wrong with it."""

import json
from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext doctor

  hf-ext doctor --json | jq .problems
"""


def add_to(app: typer.Typer) -> None:
    app.command("doctor", epilog=EXAMPLE)(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Say what is installed, on which processors, and which attention and kernels will be used and why.

    Exits with 1 where something is missing, too old, or doesn't compute.
    """

    def do() -> int:
        from hf_ext.cli.examination import examine, in_words

        found = examine()
        typer.echo(json.dumps(found, indent=2) if as_json else in_words(found))
        return 1 if found["problems"] else 0

    work(do)
