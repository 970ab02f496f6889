"""`hf-ext push`: a folder to the Hub, checked here first, in one commit."""

from pathlib import Path
from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext push outputs/quickstart me/quickstart

  hf-ext push outputs/quickstart me/quickstart --revision experiment --tag v1 --public
"""


def add_to(app: typer.Typer) -> None:
    app.command("push", epilog=EXAMPLE)(push)


def push(
    folder: Annotated[str, typer.Argument(help="The folder of a model, adapter, tokenizer or data set.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name; made where it isn't there.")],
    repo_type: Annotated[str, typer.Option("--repo_type", help="model or dataset.")] = "model",
    public: Annotated[bool, typer.Option("--public", help="What is made is public; default private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="The branch; default main.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="A new name for the commit.")] = None,
    parent_commit: Annotated[
        str | None, typer.Option("--parent_commit", help="Refuse where the branch has moved on from it.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave_out", help="Pattern of files that stay here, besides checkpoints.")
    ] = None,
    allowed: Annotated[
        list[str] | None, typer.Option("--allowed", help="A private-looking name that may go; a token never may.")
    ] = None,
) -> None:
    """Push a folder to the Hub in one commit, or not at all; nothing is sent before it is checked here."""

    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder; save the model into one first")

    def do() -> None:
        from hf_ext.hub.push import LEFT_OUT
        from hf_ext.hub.push import push as send

        info = send(
            folder,
            repo_id,
            repo_type=repo_type,
            private=not public,
            revision=revision,
            tag=tag,
            parent_commit=parent_commit,
            message=message,
            leave_out=(*LEFT_OUT, *(leave_out or ())),
            allowed=tuple(allowed or ()),
        )
        typer.echo(info.oid)

    work(do)
