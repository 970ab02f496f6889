"""What a command line does with the arguments of `hf_ext.export.options`."""

import argparse
from pathlib import Path

from hf_ext.export.export_model import export_model
from hf_ext.export.options import options_of
from hf_ext.export.verification import verify


def run_export(arguments: argparse.Namespace) -> None:
    """Export a model, or check an export that is there, and print a line for each graph.

    Raises:
        ValueError: see `export_model` and `verify`; or no model or target was given.
    """
    if arguments.verify:
        _verify(arguments)
        return
    for name, flag in (("model", "-m"), ("to", "--to")):
        if getattr(arguments, name) is None:
            raise ValueError(f"{flag}: missing; say what to export and where to: -m MODEL --to TARGET OUT")
    exported = export_model(arguments.model, arguments.to, arguments.out, options=options_of(arguments))
    parity = exported.parity
    for name, found in parity.parts.items():
        print(
            f"{name}: differs from torch by at most {found['max_difference']:.2g}, {found['mean_difference']:.2g} on average"
        )
    print_text(parity.greedy_same, parity.greedy_tokens)
    print(f"{arguments.out}: {exported.task}, {exported.num_bytes / 2**20:.1f} MB")


def _verify(arguments: argparse.Namespace) -> None:
    for name in ("model", "to", "quantize", "calibration", "task", "tolerance"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"{name}={getattr(arguments, name)!r}: --verify checks what is there; leave it out")
    found = verify(Path(arguments.out))
    for name, difference in found.differences.items():
        print(f"{name}: differs from torch's numbers by at most {difference.max_difference:.2g}")
    print_text(found.greedy_same, found.greedy_tokens)
    print(f"{arguments.out}: verified")


def print_text(same: int | None, compared: int | None) -> None:
    """Nothing for a model that writes nothing."""
    if compared is not None:
        print(f"text: {same} of {compared} tokens are those of torch")
