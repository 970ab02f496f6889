"""`hf-ext pull`: one commit of a repository as a folder, verified."""

from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext pull me/quickstart outputs/pulled --revision v1
"""


def add_to(app: typer.Typer) -> None:
    app.command("pull", epilog=EXAMPLE)(pull)


def pull(
    repo_id: Annotated[str, typer.Argument(help="owner/name.")],
    folder: Annotated[str, typer.Argument(help="Where to; not there yet, empty, or this commit already.")],
    repo_type: Annotated[str, typer.Option("--repo_type", help="model or dataset.")] = "model",
    revision: Annotated[str | None, typer.Option("--revision", help="A branch, tag or commit; default main.")] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave_out", help="Pattern of files that stay there, such as '*.bin'.")
    ] = None,
) -> None:
    """Pull one commit, compared with the Hub's sizes and hashes: the whole folder or none. Pickles are refused."""

    def do() -> None:
        from hf_ext.hub.pull import LEFT_THERE
        from hf_ext.hub.pull import pull as fetch

        fetch(repo_id, folder, repo_type=repo_type, revision=revision, leave_out=(*LEFT_THERE, *(leave_out or ())))

    work(do)
