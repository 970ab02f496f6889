"""`hf-ext evaluate`: a trained model on a file, by its task's metrics."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_ext.cli.loading import Attention, Base, Device, Dtype, Revision
from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext evaluate outputs/verdicts held_out.csv --columns text=review --columns label=verdict

  hf-ext evaluate outputs/quickstart "more_texts/*.txt" --json
"""


def add_to(app: typer.Typer) -> None:
    app.command("evaluate", epilog=EXAMPLE)(evaluate)


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder, an export's, or another with a model and tokenizer.")
    ],
    data_files: Annotated[
        list[str], typer.Argument(help="json, jsonl, csv, tsv, parquet, txt: paths, globs; or en=FILE de=FILE.")
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", help="NAME=COLUMN: the task's name and the file's; default the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The YAML that says the task; default MODEL/recipe.yaml.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Rows at a time.")] = 16,
    max_rows: Annotated[int | None, typer.Option("--max_rows", min=1, help="The first rows or documents only.")] = None,
    predictions: Annotated[
        str | None, typer.Option("--predictions", help="A file to write: one JSON object a row.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
    base: Base = None,
    attn_implementation: Attention = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Score a trained model on rows of a file, as the recipe that trained it scores its own: accuracy, BLEU, perplexity …

    The task is what the model's head and its recipe.yaml say.
    """

    if predictions is not None and Path(predictions).exists():
        raise ValueError(f"--predictions {predictions}: is there already; choose another name")

    def do() -> None:
        from transformers import AutoConfig

        from hf_ext.cli.loading import config_source, load_model, load_tokenizer
        from hf_ext.hub.model_source import find_model
        from hf_ext.tasks.reload_check import auto_class_of
        from hf_ext.tasks.saved_model_evaluation import evaluate_saved
        from hf_ext.training.recipe_yaml import read_yaml

        source = find_model(model, revision)
        beside = source.folder / "recipe.yaml"
        path = Path(recipe) if recipe is not None else beside if beside.is_file() else None
        sections = {} if path is None else {name: part or {} for name, part in read_yaml(path).items()}
        config = AutoConfig.from_pretrained(config_source(source, base).folder, **source.options)
        loaded = load_model(
            source,
            auto_class_of(config),
            base=base,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
        )
        found = evaluate_saved(
            loaded,
            load_tokenizer(source),
            sections,
            _files(data_files),
            columns=_mapping(columns),
            batch_size=batch_size,
            max_rows=max_rows,
        )
        if predictions is not None:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found.predictions)
            Path(predictions).write_text("".join(lines), encoding="utf-8")
        if as_json:
            typer.echo(json.dumps(found.scores))
        else:
            width = max(map(len, found.scores))
            for name, value in found.scores.items():
                typer.echo(
                    f"{name.ljust(width)}  {value:,}" if isinstance(value, int) else f"{name.ljust(width)}  {value:.4f}"
                )

    work(do)


def _files(given: list[str]) -> list[str] | dict[str, str]:
    """Paths, or column -> text file where every word says so."""
    parts = [word.partition("=") for word in given]
    if all(
        name.isidentifier() and path and not Path(word).exists()
        for word, (name, _, path) in zip(given, parts, strict=True)
    ):
        return {name: path for name, _, path in parts}
    return list(given)


def _mapping(pairs: list[str] | None) -> dict[str, str]:
    found = {}
    for pair in pairs or ():
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise ValueError(f"--columns {pair}: must be the task's name of a column, =, and the file's: text=review")
        found[name] = column
    return found
