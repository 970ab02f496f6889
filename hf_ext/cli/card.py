"""`hf-ext card`: a run's model card, written from its folder or brought up to date."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_ext.cli.loading import Base
from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext card outputs/verdicts

  hf-ext evaluate outputs/verdicts test.csv --json > scores.json

  hf-ext card outputs/verdicts --results scores.json --dataset test.csv
"""


def add_to(app: typer.Typer) -> None:
    app.command("card", epilog=EXAMPLE)(card)


def card(
    folder: Annotated[str, typer.Argument(help="A run's folder.")],
    results: Annotated[
        str | None, typer.Option("--results", help="Scores of `hf-ext evaluate --json`, to be added.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="With --results: what they were measured on.")
    ] = None,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write it anew from the folder's files, though there is one.")
    ] = False,
    base: Base = None,
) -> None:
    """Write the README.md of a run's folder where it has none; else bring its numbers up to date and leave the rest."""

    if (results is None) != (dataset is None):
        raise ValueError("--results, --dataset: give both, or none of them")

    def do() -> None:
        place = Path(folder)
        path = place / "README.md"

        from hf_ext.hub.model_source import find_model
        from hf_ext.tasks.run_card import refresh_card, write_card

        source = find_model(folder)
        if rewrite or not path.is_file():
            from transformers import AutoConfig

            from hf_ext.cli.loading import config_source, load_model
            from hf_ext.tasks.reload_check import auto_class_of

            config = AutoConfig.from_pretrained(config_source(source, base).folder, **source.options)
            write_card(load_model(source, auto_class_of(config), base=base), place).save(path)
            typer.echo(f"{path}: written")
            if results is None:
                return
        later = None if results is None else _scores(results)
        made, changed = refresh_card(place, later=later, dataset=dataset)
        if changed:
            made.save(path)
        typer.echo(f"{path}: {changed} numbers brought up to date")

    work(do)


def _scores(path: str) -> dict[str, float]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--results {path}: is no JSON ({error})") from None
    if not isinstance(found, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in found.values()
    ):
        raise ValueError(
            f"--results {path}: must be a mapping from names to numbers, as hf-ext evaluate --json prints it"
        )
    return found
