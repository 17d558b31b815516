"""The benchmark's pictures: curves of a workload, and the performance profile of a track."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scripts.ranking.scores import TAUS, Entry, Standing, area, optims, profile
from scripts.ranking.workloads import Target, Workload
from tasks.common.figures import new_figure, png
from tasks.engine.records.metrics import Curve
from tasks.engine.report.formatting import NOTHING
from tasks.engine.report.palette import TARGET
from tasks.engine.report.statistics import band, spans_decades


def curves(title: str, target: Target | None, entries: Sequence[Entry]) -> bytes:
    """Validation loss and test metric against processor seconds: medians, ranges over seeds."""
    figure = new_figure(11.0, 4.4)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    losses, tests = figure.subplots(1, 2)
    run = entries[0].outcomes[0].run
    # What is measured before the first step says nothing, and would stretch the axis.
    valid = {e.optim: [after_start(one.loss) for one in e.outcomes] for e in entries}
    test = {e.optim: [after_start(one.test) for one in e.outcomes] for e in entries}
    _draw(losses, entries, valid, "validation loss")
    # What rises towards a ceiling shows nothing on a logarithmic axis.
    _draw(tests, entries, test, f"test {run.metric}", rises=run.higher_is_better)
    if target is not None:
        losses.axhline(target.loss, color=TARGET, linewidth=0.9, linestyle="dashed")
        said = losses.annotate(
            f"target, of {target.optim}",
            (0.01, target.loss),  # where all curves are above it
            xycoords=losses.get_yaxis_transform(),
            ha="left",
            va="bottom",
            fontsize=8,
            color="#555555",
        )
        said.set_in_layout(False)  # curves may end far above the target
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


def profiles(standings: Sequence[Standing]) -> bytes:
    """The share of workloads on which each optimizer is within a factor of the fastest."""
    figure = new_figure(7.0, 4.6)
    axes = figure.subplots()
    colours = {row.optim: row.colour for one in standings for row in one.rows}
    for index, optim in enumerate(optims(standings)):
        shares = profile(standings, optim)
        dashes = ("solid", "dashed", "dashdot")[index % 3]
        label = f"{optim} ({area(shares):.2f})"
        axes.step(TAUS, shares, where="post", color=colours[optim], linestyle=dashes, label=label)
    axes.set(xlim=(1, TAUS[-1]), ylim=(0, 1.03))
    axes.set_xlabel("seconds to the target, over the fastest optimizer's", fontsize=9)
    axes.set_ylabel(f"share of the {len(standings)} workloads", fontsize=9)
    figure.legend(
        frameon=False, fontsize=8, title="area", title_fontsize=8, loc="outside center right"
    )
    _plain(axes)
    return png(figure)


def title(workload: Workload, track: str) -> str:
    """Above a workload's curves."""
    goal = NOTHING if workload.target is None else f"{workload.target.loss:.4g}"
    return f"{workload.name}, {track} track    (target: validation loss {goal})"


def after_start(curve: Curve) -> Curve:
    """Without what was measured before the first step."""
    return curve.take(curve.steps > 0)


def _draw(
    axes: Axes,
    entries: Sequence[Entry],
    found: Mapping[str, Sequence[Curve]],
    name: str,
    *,
    rises: bool = False,
) -> None:
    every = [curve for curves in found.values() for curve in curves]
    log = not rises and spans_decades(every, decades=0.7)
    shown: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    longest = max((c.cpu_seconds.max() for c in every if len(c.steps)), default=0.0)
    for entry in entries:
        middle = band(found[entry.optim], "cpu_seconds", log=log)
        if not len(middle.x):
            continue
        axes.fill_between(middle.x, middle.low, middle.high, color=entry.colour, alpha=0.13, lw=0)
        wide = 2.4 if entry.optim.startswith("snopt") else 1.4
        dashes = "dashed" if entry.optim == "snopt_paper" else "solid"
        axes.plot(
            middle.x, middle.median, color=entry.colour, lw=wide, ls=dashes, label=entry.optim
        )
        shown.append((middle.median, middle.median[middle.x > longest / (3 if rises else 12)]))
    if log:
        axes.set_yscale("log")
    values = _of_interest(shown, rises)
    if len(values) and values.max() > values.min():
        ends = np.array([values.min(), values.max()])
        ends = np.log(ends) if log else ends
        ends += 0.06 * (ends[1] - ends[0]) * np.array([-1, 1])
        axes.set_ylim(*(np.exp(ends) if log else ends))
    axes.set_xlim(left=0)
    axes.set_xlabel("training time, seconds on one processor", fontsize=9)
    axes.set_ylabel(f"{name}{' (log)' if log else ''}", fontsize=9)
    _plain(axes)


def _of_interest(
    shown: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], rises: bool
) -> NDArray[np.float64]:
    """What an axis has to show: the later parts of those curves that get anywhere.

    The climb to a ceiling, and a curve that ends nearer to its start than to the best end, as where
    training diverged, would take most of it.

    Args:
        shown: medians of each optimizer, whole and later on.
        rises: whether higher is better.
    """
    ends = [median[-1] for median, _ in shown if np.isfinite(median[-1])]
    best = (max if rises else min)(ends, default=math.nan)
    near = [y for all_, y in shown if abs(all_[-1] - best) < abs(all_[-1] - all_[0])]
    return np.concatenate(near) if near else np.empty(0)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E8E8E8", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
