"""Quantize a saved model, and compare what comes of it: python -m hf_ext.quantization --help"""

import argparse
import dataclasses
import json
from collections.abc import Sequence

import torch
from transformers import AutoTokenizer

from hf_ext.quantization.evaluation import compare, load_saved, make_batch, measure, read_rows, table
from hf_ext.quantization.methods import METHODS, find_method, quantize
from hf_ext.quantization.saving import check_new_folder, save_quantized
from hf_ext.training.recipe import run_recipe_main


EXAMPLES = """examples:
  python -m hf_ext.quantization quantize outputs/quickstart outputs/quickstart_int4 --method int4 --group_size 64
  python -m hf_ext.quantization quantize outputs/quickstart outputs/static --method int8_static --calibration texts.txt
  python -m hf_ext.quantization compare outputs/quickstart outputs/quickstart_int4 outputs/static --texts texts.txt
"""
CALIBRATION_BATCH = 8


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.command == "measure":
        print(json.dumps(dataclasses.asdict(measure(arguments.folder, arguments.texts, arguments.results))))
    elif arguments.command == "compare":
        print(table(compare(arguments.folders, arguments.texts)))
    else:
        quantize_folder(
            arguments.folder,
            arguments.out,
            arguments.method,
            calibration=arguments.calibration,
            exclude=arguments.exclude,
            group_size=arguments.group_size,
            observer=arguments.observer,
        )


def quantize_folder(
    folder: str,
    out: str,
    method: str,
    *,
    calibration: str | None = None,
    exclude: Sequence[str] = (),
    group_size: int | None = None,
    observer: str | None = None,
) -> None:
    """From a saved model to a quantized one; prints one line.

    Args:
        calibration: file of texts, for methods with calibrated inputs. Others: of `quantize`.

    Raises:
        ValueError: before anything is loaded: an unknown method, a folder that is there already.
    """
    find_method(method)
    check_new_folder(out)
    options = {name: value for name, value in (("group_size", group_size), ("observer", observer)) if value is not None}
    rows = None if calibration is None else read_rows(calibration)
    model = load_saved(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batches = None
    if rows is not None:
        parts = [rows[start : start + CALIBRATION_BATCH] for start in range(0, len(rows), CALIBRATION_BATCH)]
        batches = [make_batch(model, tokenizer, part) for part in parts]
    quantize(model, method, calibration=batches, exclude=exclude, **options)
    save_quantized(model, out, tokenizer)
    layers = len(model.quantized_with["layers"])
    print(f"{out}: {layers} layers in {METHODS[method].summary}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hf_ext.quantization",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listed = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    one = commands.add_parser("quantize", help="save a model with its linear layers quantized")
    one.add_argument("folder", help="a saved model of ours, with its tokenizer")
    one.add_argument("out", help="the folder to write")
    one.add_argument("--method", default="int8", help=listed)
    one.add_argument("--calibration", help="texts for methods with calibrated inputs: one a line, or JSON lines")
    one.add_argument("--exclude", nargs="*", default=[], help="last parts of names of layers that stay floats")
    one.add_argument("--group_size", type=int, help="inputs that share a scale, of int4, int2, torchao_int4")
    one.add_argument("--observer", help="of int8_static: minmax, percentile or mse")
    table = commands.add_parser("compare", help="print a table of saved models, the first one the reference")
    table.add_argument("folders", nargs="+")
    table.add_argument("--texts", required=True, help="one a line, or JSON lines with text and label or target")
    single = commands.add_parser("measure", help="one line of the table, as JSON (compare calls it)")
    single.add_argument("folder")
    single.add_argument("--texts", required=True)
    single.add_argument("--results", required=True, help="file for logits and written tokens")
    return parser.parse_args(argv)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_recipe_main(main)
