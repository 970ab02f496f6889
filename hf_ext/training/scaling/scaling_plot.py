"""The picture of a fitted law: loss against compute, run by run, and the best that each budget can give."""

import math
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hf_ext.training.scaling.report import short
from hf_ext.training.scaling.scaling_law import FittedLaw, Run


NUM_POINTS = 100  # of a curve
BEYOND = 10  # times the largest budget of a run: how far the best is drawn on
NUM_NAMED = 8  # sizes that the legend names


def draw_scaling_law(fitted: FittedLaw, runs: list[Run], path: str | Path) -> None:
    """Write a PNG: on the left the runs, a curve for each size, and the least loss of each budget; on the right the size
    that reaches it. Bands hold what 80 % of the bootstrap's laws say."""
    law = fitted.law
    sizes = sorted({run.parameters for run in runs})
    lowest, highest = min(run.flops for run in runs), max(run.flops for run in runs)
    budgets = _geometric(lowest, highest * BEYOND)
    color_of = dict(zip(sizes, colormaps["viridis"](_even(len(sizes))), strict=True))

    # a figure of its own, not pyplot's: nothing global is touched
    figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    named = set(sizes[:: -(-len(sizes) // NUM_NAMED)])
    for size in sizes:
        tokens = _geometric(
            min(r.tokens for r in runs if r.parameters == size) / 2,
            max(r.tokens for r in runs if r.parameters == size) * 4,
        )
        curve = [law.loss(size, D) for D in tokens]
        left.plot([6 * size * D for D in tokens], curve, color=color_of[size], lw=1, alpha=0.7)
        here = [run for run in runs if run.parameters == size]
        left.plot(
            [run.flops for run in here],
            [run.loss for run in here],
            "o",
            ms=4,
            color=color_of[size],
            label=f"{short(size)} parameters" if size in named else None,
        )
    best = [law.loss(N, C / (6 * N)) for C, N in ((C, law.optimal_parameters(C)) for C in budgets)]
    left.plot(budgets, best, color="#c8553d", lw=2, label="the best of a budget")
    left.axhline(law.E, color="#888888", lw=1, ls=":", label=f"E = {law.E:.3g}")
    left.set_ylabel("loss, nats a token")
    right.plot(budgets, [law.optimal_parameters(C) for C in budgets], color="#c8553d", lw=2, label="optimal parameters")
    for size in sizes:
        here = [run.flops for run in runs if run.parameters == size]
        right.plot(here, [size] * len(here), "o", ms=3, color=color_of[size])
    if fitted.samples:
        of_losses = [
            [s.loss(N, C / (6 * N)) for s in fitted.samples for N in (s.optimal_parameters(C),)] for C in budgets
        ]
        of_sizes = [[s.optimal_parameters(C) for s in fitted.samples] for C in budgets]
        for axes, values in ((left, of_losses), (right, of_sizes)):
            low, high = zip(*(_inner(v) for v in values), strict=True)
            axes.fill_between(budgets, low, high, color="#c8553d", alpha=0.2, lw=0)
    right.set_yscale("log")
    right.set_ylabel("parameters")
    left.set_yscale("log")
    left.yaxis.set_major_locator(MaxNLocator(6))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    left.yaxis.set_minor_formatter("")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs, 6 N D")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"L = {law.E:.3g} + {law.A:.4g} / N^{law.alpha:.3g} + {law.B:.4g} / D^{law.beta:.3g}")
    figure.savefig(path)


def _geometric(low: float, high: float) -> list[float]:
    return [low * (high / low) ** share for share in _even(NUM_POINTS)]


def _even(count: int) -> list[float]:
    return [i / max(1, count - 1) for i in range(count)]


def _inner(values: list[float]) -> tuple[float, float]:
    """The bounds between which 80 % lie."""
    values = sorted(values)
    last = len(values) - 1
    return values[math.floor(0.1 * last)], values[math.ceil(0.9 * last)]
