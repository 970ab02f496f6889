"""`hf-ext`: the subcommands in one program, and what a wrong command line is answered with."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from hf_ext.cli import card, chat, doctor, evaluate, export, generate, plan, pull, push, quantize, run, train
from hf_ext.cli.working import INTERRUPTED


BAD_INPUT = 2
EPILOG = (
    "Exit codes: 0 done, 1 doctor found a problem, 2 a mistake of yours, 3 a loss that isn't finite, 75 stopped by SIGTERM \
and saved, 130 interrupted. HF_EXT_TRACEBACK=1 shows where a mistake was noticed."
)


app = typer.Typer(
    name="hf-ext",
    help="Train, evaluate, run and ship transformers of your own design. `hf-ext COMMAND --help` shows an example of each.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # --max-new-tokens is --max_new_tokens, as recipes have it
    context_settings={
        "help_option_names": ["--help", "-h"],
        "token_normalize_func": lambda name: name.replace("-", "_"),
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hf-ext {version('hf-ext')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for subcommand in (train, evaluate, generate, chat, export, quantize, push, pull, plan, card, doctor, run):
    subcommand.add_to(app)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and end the process: what is wrong with it is one line on stderr.

    Args:
        words: without the program's name; default those of this process.
    """
    try:
        code = app(args=None if words is None else list(words), prog_name="hf-ext", standalone_mode=False)
    except TyperException as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except ValueError as error:  # of what the words alone tell, before torch is loaded
        if os.environ.get("HF_EXT_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(code or 0)


def _one_line(error: TyperException) -> str:
    """The parser's message, with the nearest option where one is unknown, and where to look."""
    context = getattr(error, "ctx", None)
    program = "hf-ext" if context is None else context.command_path
    option = getattr(error, "option_name", None)
    if option is not None and context is not None and option.lstrip("-").replace("-", "_") in _places(context):
        return f"{program}: {option} is no option: it is given by its place, without a name; see {program} --help"
    if nearest := getattr(error, "possibilities", None):
        return f"{program}: {error.message}; did you mean {' or '.join(nearest)}?"
    message = " ".join(error.format_message().split()).rstrip(".")
    hint = "" if message.endswith("?") else f"; see {program} --help"
    return f"{program}: {message}{hint}"


def _places(context: typer.Context) -> set[str]:
    """Names of a command's arguments."""
    return {one.name for one in context.command.params if one.param_type_name == "argument"}
