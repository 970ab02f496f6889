"""The section of a card that says what a model's exports compute, from the records that lie beside them.

    python -m hf_ext.hub.export_parity outputs/quickstart     # after its exports: writes the section into the card

An export is a folder with `export.json` and `parity.json`, as `hf_ext.export` writes it: the model's own, or one in it.
"""

import argparse
import json
from pathlib import Path

from hf_ext.hub.card_sections import put_section


HEADING = "## Exports"
RECORD, DESCRIPTION = "parity.json", "export.json"


def exports_section(folder: str | Path) -> str:
    """Markdown without the heading, with a row for every graph of every export in `folder`; empty where there is none.

    Raises:
        ValueError: a record that isn't what an export writes.
    """
    folder = Path(folder)
    rows = []
    for record in sorted([*folder.glob(RECORD), *folder.glob(f"*/{RECORD}")]):
        rows += _rows(record, record.parent.relative_to(folder).as_posix())
    if not rows:
        return ""
    head = "| export | graph | largest difference | mean | largest output | tolerance | greedy tokens that agree |"
    return "\n".join(
        [
            "The same inputs through torch and through the exported graphs: absolute differences of all outputs, allowed up "
            "to the tolerance times the largest output (at least 1). Checked again by the inputs beside each record.",
            "",
            head,
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def add_exports(folder: str | Path) -> bool:
    """Put the section into the card of `folder`, in place of one that is there; whether there are exports.

    Raises:
        ValueError: no card, or a broken record.
    """
    section = exports_section(folder)
    put_section(folder, HEADING, section)
    return bool(section)


def _rows(record: Path, where: str) -> list[str]:
    try:
        parity = json.loads(record.read_text(encoding="utf-8"))
        made = json.loads(record.with_name(DESCRIPTION).read_text(encoding="utf-8"))
        kind = made["target"] + (f", {made['quantize']}" if made["quantize"] else "")
        greedy = "" if parity["greedy_tokens"] is None else f"{parity['greedy_same']} of {parity['greedy_tokens']}"
        return [
            f"| {kind}{'' if where == '.' else f' (`{where}`)'} | {name} | {found['max_difference']:.2g} | "
            f"{found['mean_difference']:.2g} | {found['largest']:.3g} | {parity['tolerance']:g} | {greedy} |"
            for name, found in parity["parts"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record.name}: isn't what an export writes ({type(error).__name__}: {error}); export the model again"
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a model's, with its card and its exports")
    folder = parser.parse_args().folder
    try:
        there = add_exports(folder)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print("the card has the exports' parity" if there else "no export in it: the card has no such section")


if __name__ == "__main__":
    main()
