"""The picture of a run: loss, evaluation loss and learning rate by step."""

import math
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw_loss_curve(log_history: list[dict], path: str | Path, title: str | None = None) -> None:
    """Write a PNG of a Trainer's log.

    Args:
        log_history: `trainer.state.log_history`: dicts with `step` and `loss` (nats a token), `eval_loss`, `learning_rate`.
        path: the PNG. title: default none.

    Raises:
        ValueError: there is no loss in the log.
    """
    series = {
        name: [(entry["step"], entry[name]) for entry in log_history if name in entry and "step" in entry]
        for name in ("loss", "eval_loss", "learning_rate")
    }
    if not series["loss"] and not series["eval_loss"]:
        raise ValueError("log_history: holds no loss; log at least one step (logging_steps) before drawing")

    # a figure of its own, not pyplot's: nothing global is touched
    figure = Figure(figsize=(8, 5.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rates = [(s, v) for s, v in series["learning_rate"] if math.isfinite(v)]
    if rates:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    else:
        upper, lower = figure.subplots(), None
    for name, color, marker, label in (
        ("loss", "#3b6ea5", None, "training"),
        ("eval_loss", "#c8553d", "o", "held out"),
    ):
        finite = [(s, v) for s, v in series[name] if math.isfinite(v)]
        if finite:
            line_label = f"{label}, {finite[-1][1]:.3f} at the end"
            upper.plot(*zip(*finite, strict=True), color=color, marker=marker, markersize=5, lw=1.5, label=line_label)
        for step, value in series[name]:
            if not math.isfinite(value):
                upper.axvline(step, color=color, lw=1, ls=":")
                upper.annotate(
                    f"{label}: {value}",
                    (step, 0.97),
                    xycoords=("data", "axes fraction"),
                    va="top",
                    ha="right",
                    rotation=90,
                    color=color,
                )
    upper.set_ylabel("loss, nats a token")
    if upper.get_legend_handles_labels()[0]:
        upper.legend(frameon=False)
    if lower is not None:
        lower.plot(*zip(*rates, strict=True), color="#5b8c5a", lw=1.5)
        lower.set_ylabel("learning rate")
        lower.set_ylim(bottom=0)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lowest = figure.axes[-1]
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(path)
