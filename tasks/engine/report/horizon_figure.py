"""The trace of an optimised integration time: T, its derivatives, and the parts of its updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tasks.common.figures import new_figure
from tasks.engine.records.metrics import Key
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import Comparison
from tasks.engine.report.nfe import per_step

_RULES = {"feedback": "#D55E00", "first_order": "#009E73", "fixed": "#0072B2"}
_Dashes = Literal["solid", "dashed", "dotted", "dashdot"]
_LINES: tuple[_Dashes, ...] = ("solid", "dashed", "dotted", "dashdot")
_T: Key = ("train", "horizon/T")


def has_horizon(comparison: Comparison) -> bool:
    """Whether any run logged an integration time."""
    return any(_T in run.curves for series in comparison.series for run in series.runs)


def horizon_figure(comparison: Comparison) -> Figure:
    """T and its trace, evaluations and seconds of a step, loss and test metric, over the steps.

    Colours are rules, dashes what T began at; of several seeds the first is thick.

    Args:
        comparison: at least one of whose runs logged an integration time.
    """
    traced = [runs for s in comparison.series if (runs := [r for r in s.runs if _T in r.curves])]
    starts = sorted({start_of(run) for runs in traced for run in runs}, reverse=True)
    figure = new_figure(13.0, 9.6)
    grid = figure.subplots(3, 3)
    for runs in traced:
        for place, run in enumerate(runs):
            style = {
                "color": _RULES.get(_rule(run), "#555555"),
                "linestyle": _LINES[starts.index(start_of(run)) % len(_LINES)],
                "linewidth": 1.8 if place == 0 else 0.8,
                "alpha": 1.0 if place == 0 else 0.5,
            }
            _draw(grid.ravel(), comparison, run, style)
    _finish(grid.ravel(), comparison)
    figure.legend(
        handles=_handles(traced, starts),
        loc="outside lower center",
        ncols=6,
        fontsize=9,
        frameon=False,
    )
    figure.suptitle(
        f"{comparison.title}: integration time    (data: {comparison.provenance})",
        fontsize=12,
        fontweight="bold",
    )
    return figure


def _draw(panels: Sequence[Axes], comparison: Comparison, run: Run, style: dict[str, Any]) -> None:
    names = ("T", "q_t", "q_tt", "open", "feedback")
    moves = _rule(run) != "fixed"
    for axes, name in zip(panels, names, strict=False):
        curve = run.curves.get(("train", f"horizon/{name}"))
        if curve is not None and (moves or name not in ("open", "feedback")):
            axes.plot(curve.steps, curve.values, **style)
    trace = per_step(run)
    panels[5].plot(trace.steps, trace.parts.sum(axis=0), **style)
    clock = run.curves.get(("train", "batch_loss"))
    if clock is not None and len(clock.steps) > 1:
        cost = np.diff(clock.seconds) / np.diff(clock.steps)
        panels[6].plot(clock.steps[1:], cost, **style)
    for axes, key in zip(panels[7:], (("train", "loss"), ("test", comparison.metric)), strict=True):
        if key in run.curves:
            axes.plot(run.curves[key].steps, run.curves[key].values, **style)


def _finish(panels: Sequence[Axes], comparison: Comparison) -> None:
    titles = (
        "T",
        "averaged Q_T",
        "averaged Q_TT (log)",
        "open part of an update, before its bound",
        "feedback part of an update, before its bound",
        "field evaluations of a step",
        "seconds of a step",
        "training loss",
        f"test {comparison.metric}",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer steps", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    runs = [run for series in comparison.series for run in series.runs if _T in run.curves]
    starts = [start_of(run) for run in runs]
    if max(starts) > 4 * min(starts):
        panels[0].set_yscale("log")
        panels[0].set_title("T (log)", fontsize=10)
    else:
        panels[0].set_ylim(bottom=0)
    panels[2].set_yscale("log")
    for axes in panels[3:5]:
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(0, color="#AAAAAA", linewidth=0.7)
    panels[6].set_ylim(bottom=0)


def _handles(traced: Sequence[Sequence[Run]], starts: Sequence[float]) -> list[Line2D]:
    rules = sorted({_rule(run) for runs in traced for run in runs})
    colours = [
        Line2D([], [], color=_RULES.get(rule, "#555555"), linewidth=2, label=rule.replace("_", " "))
        for rule in rules
    ]
    dashes = [
        Line2D([], [], color="#333333", linestyle=_LINES[i % len(_LINES)], label=f"T0 = {start:g}")
        for i, start in enumerate(starts)
    ]
    return [*colours, *dashes]


def _rule(run: Run) -> str:
    return str(run.config.get("horizon", {}).get("rule", "fixed"))


def start_of(run: Run) -> float:
    """T before training, of a run that logged it: as set, or else the first that was logged."""
    given = run.config.get("horizon", {}).get("T0")
    return float(run.curves[_T].values[0] if given is None else given)
