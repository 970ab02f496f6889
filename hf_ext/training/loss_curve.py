"""The picture of a run: loss, held-out loss, learning rate and every metric of the evaluations, by step."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


TRAINING, HELD_OUT, RATE, METRIC = "#3b6ea5", "#c8553d", "#5b8c5a", "#7a5195"
# of what an evaluation logs, what says how long it took or how much there was
NO_METRICS = ("runtime", "_per_second", "_time", "_tokens", "_samples")
PANELS_IN_A_COLUMN = 4

Series = list[tuple[int, float]]


def draw_loss_curve(
    log_history: list[dict],
    path: str | Path,
    title: str | None = None,
    *,
    best_step: int | None = None,
    unit: str = "nats a token",
) -> None:
    """Write a PNG of a Trainer's log.

    Args:
        log_history: `trainer.state.log_history`: dicts with `step` and `loss`, `eval_loss`, `learning_rate`, and any other
            `eval_…` that is a number: each gets a panel of its own beside the loss, but one that was measured only once
            where others have a course.
        path: the PNG. title: default none.
        best_step: `trainer.state.best_global_step`: marked in every panel of an evaluation.
        unit: of the loss.

    Raises:
        ValueError: there is no loss in the log.
    """
    losses, held_out, rates = (_series(log_history, name) for name in ("loss", "eval_loss", "learning_rate"))
    if not losses and not held_out:
        raise ValueError("log_history: holds no loss; log at least one step (logging_steps) before drawing")
    metrics = {name: _series(log_history, name) for name in metric_names(log_history)}
    courses = {name: series for name, series in metrics.items() if len(series) > 1}
    metrics = courses or metrics
    rates = [(s, v) for s, v in rates if math.isfinite(v)]

    num_columns = math.ceil(len(metrics) / PANELS_IN_A_COLUMN)
    num_rows = math.ceil(len(metrics) / max(1, num_columns))
    # a figure of its own, not pyplot's: nothing global is touched
    figure = Figure(figsize=(8 + 4 * num_columns, max(5.2, 1.7 * num_rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if metrics:
        left, right = figure.subfigures(1, 2, width_ratios=[8, 4 * num_columns])
    else:
        left, right = figure, None
    if rates:
        upper, lower = left.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        lower.plot(*zip(*rates, strict=True), color=RATE, lw=1.5)
        lower.set_ylabel("learning rate")
        lower.set_ylim(bottom=0)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    else:
        upper = lower = left.subplots()

    _draw(upper, losses, TRAINING, None, "training")
    _draw(upper, held_out, HELD_OUT, "o", "held out")
    _mark_best(upper, held_out, best_step)
    upper.set_ylabel(f"loss, {unit}")
    if upper.get_legend_handles_labels()[0]:
        upper.legend(frameon=False)
    _finish(lower, [upper, lower])

    if metrics:
        panels = right.subplots(num_rows, num_columns, sharex=True, squeeze=False)
        for (name, series), axes in zip(metrics.items(), panels.T.flat, strict=False):
            _draw(axes, series, METRIC, "o", None)
            _mark_best(axes, series, best_step)
            axes.set_title(_title(name, series, best_step), fontsize="small", loc="left")
        for column in panels.T:
            used = column[: sum(axes.has_data() or bool(axes.texts) for axes in column)]
            for axes in column[len(used) :]:
                axes.remove()
            used[-1].tick_params(labelbottom=True)
            _finish(used[-1], used, most_ticks=5)
    if title:
        figure.suptitle(title)
    figure.savefig(path)


def metric_names(log_history: list[dict]) -> list[str]:
    """The `eval_…` of a log that are numbers and say how good the model is, in the order they first appear; not the loss."""
    found = {}
    for entry in log_history:
        for name, value in entry.items():
            is_metric = name.startswith("eval_") and name != "eval_loss" and not name.endswith(NO_METRICS)
            if is_metric and isinstance(value, int | float) and not isinstance(value, bool) and "step" in entry:
                found[name] = None
    return list(found)


def _series(log_history: list[dict], name: str) -> Series:
    """The first value of each step: once training is over the best weights are evaluated again, at the last step."""
    found: dict[int, float] = {}
    for entry in log_history:
        if name in entry and "step" in entry:
            found.setdefault(entry["step"], entry[name])
    return list(found.items())


def _draw(axes: Axes, series: Series, color: str, marker: str | None, label: str | None) -> None:
    """A line through what is finite, and a dotted upright with its value where something isn't."""
    finite = [(s, v) for s, v in series if math.isfinite(v)]
    if finite:
        line_label = None if label is None else f"{label}, {finite[-1][1]:.3f} at the end"
        axes.plot(*zip(*finite, strict=True), color=color, marker=marker, markersize=5, lw=1.5, label=line_label)
    for step, value in series:
        if not math.isfinite(value):
            axes.axvline(step, color=color, lw=1, ls=":")
            axes.annotate(
                str(value) if label is None else f"{label}: {value}",
                (step, 0.97),
                xycoords=("data", "axes fraction"),
                va="top",
                ha="right",
                rotation=90,
                color=color,
            )


def _mark_best(axes: Axes, series: Series, best_step: int | None) -> None:
    """A ring around the evaluation at `best_step`."""
    there = [(s, v) for s, v in series if s == best_step and math.isfinite(v)]
    if there:
        ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black", "ls": "none", "clip_on": False}
        axes.plot(*there[-1], "o", label=f"best by its metric, step {best_step}", **ring)
        axes.axvline(best_step, color="black", lw=0.8, alpha=0.4)


def _title(name: str, series: Series, best_step: int | None) -> str:
    last_step, last = series[-1]
    best = [value for step, value in series if step == best_step != last_step]
    values = [f"{best[-1]:.4g} at best"] if best else []
    return f"{name.removeprefix('eval_')}: {', '.join([*values, f'{last:.4g} at the end'])}"


def _finish(lowest: Axes, column: list[Axes], most_ticks: int | str = "auto") -> None:
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_locator(MaxNLocator(nbins=most_ticks, integer=True))
    for axes in column:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
