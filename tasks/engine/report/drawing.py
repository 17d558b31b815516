"""The parts that figures are made of: one panel of curves, one of costs, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogFormatter, NullFormatter

from tasks.engine.records.clock import TRAINING
from tasks.engine.records.metrics import Axis, Curve, Key
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison, Series, find_curve
from tasks.engine.report.costs import step_cost
from tasks.engine.report.palette import BUCKETS, TARGET
from tasks.engine.report.statistics import Spread, band, spans_decades
from tasks.engine.report.targets import LOSS, Goal, metric_goal, time_to_target

AXES: tuple[tuple[Axis, str], ...] = (
    ("seconds", "training time (s)"),
    ("steps", "optimizer steps"),
    ("nfe", "field evaluations, forward + backward"),
)

_Dashes = Literal["solid", "dashed", "dashdot", "dotted"]
_DASHES: tuple[_Dashes, ...] = ("solid", "dashed", "dashdot", "dotted")
_MARKERS = ("o", "s", "^", "D")
# Beyond this many measurements a marker at each would hide the line.
_MOST_MARKERS = 25


@dataclass(frozen=True)
class Panel:
    """One curve against one axis, with the target where there is one."""

    keys: tuple[Key, ...]
    name: str
    axis: Axis
    axis_name: str
    target: Spread | None = None


def loss_panel(comparison: Comparison, axis: Axis, axis_name: str) -> Panel:
    """Training loss."""
    return _goal_panel(comparison, LOSS, axis, axis_name)


def metric_panel(comparison: Comparison, axis: Axis, axis_name: str) -> Panel:
    """The headline test metric."""
    return _goal_panel(comparison, metric_goal(comparison), axis, axis_name)


def _goal_panel(comparison: Comparison, goal: Goal, axis: Axis, axis_name: str) -> Panel:
    found = time_to_target(comparison, goal)
    target = None if found is None else found.target
    return Panel(goal.keys, goal.name, axis, axis_name, target)


def draw_panel(axes: Axes, comparison: Comparison, panel: Panel, *, labeled: bool = True) -> None:
    """Every series' median curve with its range over seeds.

    Args:
        axes: where to draw.
        comparison: the series.
        panel: what to draw.
        labeled: whether the vertical axis is named; one of a row that shares it is enough.
    """
    everything = [c for s in comparison.series for c in s.curves(panel.keys)]
    # A quantity that rises towards a ceiling shows nothing on a logarithmic axis.
    rises = comparison.higher_is_better and panel.keys != TRAIN_LOSS
    log = spans_decades(everything) and not rises
    for series in comparison.series:
        _draw_series(axes, series, panel, log)
    if panel.target is not None:
        axes.axhline(panel.target.median, color=TARGET, linewidth=0.9, linestyle="dashed", zorder=0)
    if log:
        _log_scale(axes, everything)
    if not any(len(curve.finite().values) for curve in everything):
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
    if panel.axis != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.set_xlabel(panel.axis_name, fontsize=9)
    if labeled:
        axes.set_ylabel(f"{panel.name}{' (log)' if log else ''}", fontsize=9)
    _frame(axes)


def draw_cost(axes: Axes, series: Sequence[Series]) -> None:
    """Horizontal bars: milliseconds a training step, split by bucket, medians over seeds."""
    rows = [s for s in series if any(run.steps for run in s.runs)]
    left = np.zeros(len(rows))
    for bucket in TRAINING:
        cost = np.array([1000 * step_cost(s.runs, (bucket,)).median for s in rows])
        width = np.nan_to_num(cost)
        if width.any():
            places = range(len(rows))
            axes.barh(places, width, left=left, label=bucket, color=BUCKETS[bucket], height=0.62)
            left = left + width
    for place, total in enumerate(left):
        text = f" {total:.0f} ms" if total >= 100 else f" {total:.3g} ms"
        axes.annotate(text, (total, place), va="center", fontsize=8, color="#333333")
    axes.set_yticks(range(len(rows)), [s.label for s in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a training step, by bucket", fontsize=9)
    axes.set_xlim(0, 1.14 * (left.max(initial=0.0) or 1.0))
    _frame(axes)
    axes.grid(visible=False, axis="y")
    if left.any():
        axes.legend(
            ncols=len(TRAINING),
            fontsize=7,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            columnspacing=1.0,
            handlelength=1.0,
            handletextpad=0.4,
        )


def draw_legend(part: FigureBase, comparison: Comparison, *, target: bool = True) -> None:
    """Below the panels: optimizers, how many seeds, the target, the mark of a diverged run."""
    handles = [
        Line2D(
            [],
            [],
            color=s.colour,
            linestyle=_dashes(s),
            linewidth=1.8,
            label=_legend_text(s),
        )
        for s in comparison.series
    ]
    label = _target_text(comparison) if target else ""
    if label:
        handles.append(Line2D([], [], color=TARGET, linewidth=0.9, linestyle="dashed", label=label))
    if any(run.outcome == "diverged" for s in comparison.series for run in s.runs):
        mark = Line2D([], [], marker="X", color="white", markeredgecolor="black", markersize=8)
        mark.set_linestyle("none")
        mark.set_label("diverged")
        handles.append(mark)
    part.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        fontsize=9,
        frameon=False,
    )


def _target_text(comparison: Comparison) -> str:
    """Whose values the dashed lines are; empty without any."""
    goals = (LOSS, metric_goal(comparison))
    found = {goal.name: time_to_target(comparison, goal) for goal in goals}
    ends = {name: target.baseline for name, target in found.items() if target is not None}
    if len(set(ends.values())) > 1:
        return "targets: where " + " and ".join(f"{b} ({n})" for n, b in ends.items()) + " end"
    return f"target: where {next(iter(ends.values()))} ends" if ends else ""


def _draw_series(axes: Axes, series: Series, panel: Panel, log: bool) -> None:
    tint = series.colour
    curves = series.curves(panel.keys)
    middle = band(curves, panel.axis, log=log)
    if len(curves) > 1:
        axes.fill_between(middle.x, middle.low, middle.high, color=tint, alpha=0.16, linewidth=0)
        for curve in curves:
            shown = curve.finite()
            axes.plot(shown.along(panel.axis), shown.values, color=tint, alpha=0.3, linewidth=0.7)
    mark = _MARKERS[series.variant % len(_MARKERS)] if len(middle.x) <= _MOST_MARKERS else ""
    axes.plot(
        middle.x,
        middle.median,
        color=tint,
        linestyle=_dashes(series),
        linewidth=1.8,
        marker=mark,
        markersize=3.2,
    )
    _mark_divergence(axes, series, panel, tint)


def _mark_divergence(axes: Axes, series: Series, panel: Panel, tint: str) -> None:
    """A cross at the last finite measurement of every run that diverged."""
    for run in series.runs:
        curve = find_curve(run, panel.keys)
        last = None if curve is None else curve.finite()
        if run.outcome == "diverged" and last is not None and len(last.values):
            axes.plot(
                last.along(panel.axis)[-1],
                last.values[-1],
                marker="X",
                markersize=8,
                color=tint,
                markeredgecolor="black",
                markeredgewidth=0.7,
                zorder=5,
            )


def _dashes(series: Series) -> _Dashes:
    return _DASHES[series.variant % len(_DASHES)]


def _legend_text(series: Series) -> str:
    count = len(series.runs)
    return f"{series.label} ({'1 seed' if count == 1 else f'median, range of {count} seeds'})"


def _log_scale(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.set_yscale("log")
    values = np.concatenate([curve.finite().values for curve in curves])
    if not values.all():  # what is exactly 0 leaves through the bottom
        axes.set_ylim(values[values > 0].min() / 2, values.max() * 2)
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 100:
        # Few powers of ten in sight: name some of the values between them.
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))
        axes.tick_params(axis="y", which="minor", labelsize=7)


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
