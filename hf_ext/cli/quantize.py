"""`hf-ext quantize`: a saved model in fewer bits, and what that costs."""

from typing import Annotated

import typer

from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext quantize outputs/quickstart outputs/quickstart_int4 --method int4 --group_size 64 --compare texts.txt

  hf-ext quantize --methods
"""


def add_to(app: typer.Typer) -> None:
    app.command("quantize", epilog=EXAMPLE)(quantize)


def quantize(
    folder: Annotated[str | None, typer.Argument(help="A saved model of ours, with its tokenizer.")] = None,
    out: Annotated[str | None, typer.Argument(help="The folder to write; must not be there.")] = None,
    method: Annotated[str, typer.Option("--method", help="One of --methods.")] = "int8",
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="Texts for methods with calibrated inputs: one a line, or JSON lines."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Last part of the name of layers that stay floats; repeatable."),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--group_size", help="Inputs that share a scale, of int4, int2, torchao_int4.")
    ] = None,
    observer: Annotated[
        str | None, typer.Option("--observer", help="Of int8_static: minmax, percentile or mse.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", help="Texts on which both are then compared: size, memory, speed, metric, agreement."
        ),
    ] = None,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and exit.")] = False,
) -> None:
    """Save a model of ours with its linear layers quantized. `python -m hf_ext.quantization compare` compares several."""

    if not methods and None in (folder, out):
        raise ValueError("hf-ext quantize: needs the model's folder and the folder to write; see --help")

    def do() -> None:
        import torch

        from hf_ext.quantization.__main__ import quantize_folder
        from hf_ext.quantization.evaluation import compare as compare_folders
        from hf_ext.quantization.evaluation import read_rows, table
        from hf_ext.quantization.methods import METHODS

        if methods:
            typer.echo("\n".join(f"{name}: {found.summary}" for name, found in METHODS.items()))
            return
        if compare is not None:
            read_rows(compare)  # refused before anything is quantized
        with torch.no_grad():
            quantize_folder(
                folder,
                out,
                method,
                calibration=calibration,
                exclude=exclude or (),
                group_size=group_size,
                observer=observer,
            )
        if compare is not None:
            typer.echo(table(compare_folders([folder, out], compare)))

    work(do)
