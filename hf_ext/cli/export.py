"""`hf-ext export`: a model in the form of another engine, compared with torch before it is there."""

import argparse
from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext export outputs/quickstart outputs/quickstart_onnx --to onnx --quantize int8_dynamic

  hf-ext export --verify outputs/quickstart_onnx

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
    to: Annotated[str | None, typer.Option("--to", help="One of --targets.")] = None,
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
    max_batch_size: Annotated[
        int | None, typer.Option("--max_batch_size", help="Rows that executorch reserves memory for; default 4.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max_length", help="Likewise tokens of a row; default all positions.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="On the Hub: a branch, tag or commit.")] = None,
    verify: Annotated[
        str | None, typer.Option("--verify", help="Compare an export that is there with torch again.")
    ] = None,
    targets: Annotated[bool, typer.Option("--targets", help="List the targets and exit.")] = False,
) -> None:
    """Write a model for another engine. What is written computes what torch does, or isn't there."""

    if not targets and verify is None and None in (model, out, to):
        raise ValueError("hf-ext export: needs the model, what to write, and --to TARGET; see --help")

    def do() -> None:
        options = {"quantize": quantize, "calibration": calibration, "task": task, "tolerance": tolerance}
        options |= {"max_batch_size": max_batch_size, "max_length": max_length}
        if targets:
            typer.echo("\n".join(_targets()))
        elif verify is not None:
            _run(model=model, to=to, **options, greedy_tokens=greedy_tokens, verify=True, out=verify)
        elif to == GGUF:
            _write_gguf(model, revision, out, options)
        else:
            from hf_ext.export.options import ExportOptions
            from hf_ext.hub.model_source import find_model

            ExportOptions(**options, greedy_tokens=greedy_tokens).check(to)  # before anything is fetched
            folder = str(find_model(model, revision).folder)
            _run(model=folder, to=to, **options, greedy_tokens=greedy_tokens, verify=False, out=out)

    work(do)


def _run(**arguments) -> None:
    from hf_ext.export.export_command import run_export

    run_export(argparse.Namespace(**arguments))


def _write_gguf(model: str, revision: str | None, out: str, options: dict) -> None:
    from hf_ext.export.gguf import main as write_gguf
    from hf_ext.hub.model_source import find_model

    for name, value in options.items():
        if name != "quantize" and value is not None:
            raise ValueError(f"--{name} {value}: has no effect with --to gguf; leave it out")
    write_gguf([str(find_model(model, revision).folder), out, "--type", options["quantize"] or "f16"])


def _targets() -> list[str]:
    from hf_ext.export.gguf import TYPES
    from hf_ext.export.targets import TARGETS

    lines = []
    for name, target in TARGETS.items():
        bits = f"; --quantize {', '.join(target.quantizations)}" if target.quantizations else ""
        lines.append(f"{name}: {target.summary}{bits}")
    return [*lines, f"{GGUF}: one file for llama.cpp; --quantize {', '.join(TYPES)}"]
