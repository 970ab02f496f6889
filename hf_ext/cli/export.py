"""`hf-ext export`: a model in the form of another engine, compared with torch before it is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext export outputs/quickstart outputs/quickstart_onnx --to onnx --quantize int8_dynamic

  hf-ext export outputs/quickstart outputs/quickstart.gguf --to gguf

  hf-ext export --targets
"""
GGUF = "gguf"


def add_to(app: typer.Typer) -> None:
    app.command("export", epilog=EXAMPLE)(export)


def export(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A saved model of ours: a folder, or owner/name.")
    ] = None,
    out: Annotated[str | None, typer.Argument(help="The folder (gguf: file) to write; must not be there.")] = None,
    to: Annotated[str, typer.Option("--to", help="One of --targets.")] = "onnx",
    quantize: Annotated[str | None, typer.Option("--quantize", help="Fewer bits, by a name of --targets.")] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="Texts for what calibrates: one a line, or JSON lines.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="As Optimum calls it; default what it was saved for.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Largest difference from torch, as a part of the largest output."),
    ] = None,
    greedy_tokens: Annotated[
        int, typer.Option("--greedy_tokens", min=1, help="Written tokens that are compared.")
    ] = 16,
    revision: Annotated[str | None, typer.Option("--revision", help="On the Hub: a branch, tag or commit.")] = None,
    targets: Annotated[bool, typer.Option("--targets", help="List the targets and exit.")] = False,
) -> None:
    """Write a model for another engine. What is written computes what torch does, or isn't there."""

    def do() -> None:
        from hf_ext.export.gguf import TYPES
        from hf_ext.export.gguf import main as write_gguf
        from hf_ext.hub.model_source import find_model

        if to == GGUF and not targets:
            for name, value in {"calibration": calibration, "task": task, "tolerance": tolerance}.items():
                if value is not None:
                    raise ValueError(f"--{name} {value}: has no effect with --to gguf; leave it out")
            write_gguf(
                [*_both(model, out, lambda name: find_model(name, revision).folder), "--type", quantize or "f16"]
            )
            return
        from hf_ext.export import ExportOptions, export_model
        from hf_ext.export.targets import TARGETS
        from hf_ext.models.configuration_choices import check_choice

        if targets:
            for name, target in TARGETS.items():
                bits = f"; --quantize {', '.join(target.quantizations)}" if target.quantizations else ""
                typer.echo(f"{name}: {target.summary}{bits}")
            typer.echo(f"{GGUF}: one file for llama.cpp; --quantize {', '.join(TYPES)}")
            return
        check_choice("--to", to, (*TARGETS, GGUF))
        options = ExportOptions(
            quantize=quantize, calibration=calibration, task=task, tolerance=tolerance, greedy_tokens=greedy_tokens
        )
        options.check(to)  # before anything is fetched
        folder, path = _both(model, out, lambda name: find_model(name, revision).folder)
        made = export_model(folder, to, path, options=options)
        typer.echo(f"{made.folder}: {made.task}, {made.num_bytes:,} bytes, compared with torch")

    work(do)


def _both(model: str | None, out: str | None, find: Callable[[str], Path]) -> tuple[str, str]:
    """The model's folder and what is to be written; ValueError where one isn't said."""
    if model is None or out is None:
        raise ValueError("hf-ext export: needs the model and what to write; see --help")
    return str(find(model)), out
