"""Every benchmark in turn; what each prints goes into outputs/benchmarks/NAME.md too, and its tables into NAME.png.

    python tests/benchmarks/report.py [training decoding …] [--out DIR]     # `make bench`

Each runs in a process of its own. One that fails doesn't keep the others from running; the exit status says so, 1.
"""

import argparse
import datetime
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from hf_ext.training.hardware import describe_hardware


FOLDER = Path(__file__).parent
BENCHMARKS = (
    "cross_entropy",
    "packing",
    "attention",
    "training",
    "decoding",
    "padding_free",
    "encoder_decoder",
    "exported_decoding",
    "gpu",
)
DRAW_THEMSELVES = ("attention", "gpu")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Table:
    """Of what was printed. quantity: head of its first column of numbers. values: first column -> number there."""

    quantity: str
    values: dict[str, float]


def read_tables(text: str) -> list[Table]:
    """The Markdown tables in `text` that have numbers; of a cell with several the first counts."""
    tables = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        columns = [i for i in range(1, len(head)) if rows and all(NUMBER.match(row[i]) for row in rows)]
        if columns:
            name = ", ".join(filter(None, (head[0], head[columns[0]])))
            tables.append(Table(name, {row[0]: float(NUMBER.match(row[columns[0]])[0]) for row in rows}))
    return tables


def draw(tables: list[Table], title: str, path: Path) -> None:
    """Bars, a plot for each table, one below the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [len(table.values) + 1.5 for table in tables]
    figure = Figure(figsize=(9, 0.6 + 0.36 * sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for plot, table in zip(axes, tables, strict=True):
        bars = plot.barh(list(table.values), list(table.values.values()), color="#3b6ea5", height=0.7)
        plot.bar_label(bars, fmt="{:g}", padding=3, fontsize=8)
        plot.set_title(table.quantity.replace("`", ""), loc="left", fontsize=9)
        plot.set_yticks(range(len(table.values)), [name.replace("`", "") for name in table.values], fontsize=8)
        plot.tick_params(axis="x", labelsize=8)
        plot.invert_yaxis()
        plot.margins(x=0.12)
        plot.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)


def head(name: str) -> str:
    """What a report begins with: command, day, machine, versions."""
    machine = "; ".join(f"{key}: {value}" for key, value in describe_hardware().items())
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"# {name}\n\n`python tests/benchmarks/{name}.py`, {datetime.date.today()}\n{machine}\n{versions}\n\n"


def run(script: Path, out: Path) -> bool:
    """Runs a benchmark, shows what it prints while it does, and keeps it. Returns whether it ended well."""
    name = script.stem
    said = [head(name)]
    print(said[0], end="", flush=True)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    print(flush=True)
    if process.returncode == 0:
        out.mkdir(parents=True, exist_ok=True)
        text = "".join(said)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        tables = read_tables(text)
        if tables and name not in DRAW_THEMSELVES:
            draw(tables, f"{name}, {datetime.date.today()}, torch {torch.__version__}", out / f"{name}.png")
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    failed = [name for name in arguments.names or BENCHMARKS if not run(FOLDER / f"{name}.py", arguments.out)]
    print(f"failed: {', '.join(failed)}" if failed else f"all written to {arguments.out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
