"""The report's figures: curves over time, steps and evaluations, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from tasks.common.figures import new_figure
from tasks.engine.records.metrics import Key
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison
from tasks.engine.report.drawing import (
    AXES,
    Panel,
    draw_cost,
    draw_legend,
    draw_panel,
    loss_panel,
    metric_panel,
)

_COLUMNS = 4


def comparison_figure(comparison: Comparison) -> Figure:
    """Loss and metric against seconds, steps and evaluations, and the split of a step's time."""
    figure = new_figure(13.5, 8.6 + 0.28 * len(comparison.series))
    heights = [7.4, 1.2 + 0.28 * len(comparison.series)]
    curves, costs = _parts(figure, 2, 1, height_ratios=heights)
    curves.suptitle(heading(comparison), fontsize=12, fontweight="bold")
    grid = curves.subplots(2, 3, sharey="row")
    for column, (axis, name) in enumerate(AXES):
        first = column == 0
        draw_panel(grid[0, column], comparison, loss_panel(comparison, axis, name), labeled=first)
        draw_panel(grid[1, column], comparison, metric_panel(comparison, axis, name), labeled=first)
    draw_legend(curves, comparison)
    draw_cost(costs.subplots(1, 1), comparison.series)
    return figure


def overview_figure(comparisons: Sequence[Comparison]) -> Figure:
    """A row a comparison: loss and metric against seconds, and the split of a step's time."""
    figure = new_figure(14.5, 4.2 * len(comparisons))
    axis, name = AXES[0]
    for part, comparison in zip(_parts(figure, len(comparisons), 1), comparisons, strict=True):
        part.suptitle(heading(comparison), fontsize=11, fontweight="bold")
        loss, metric, cost = part.subplots(1, 3, width_ratios=[1, 1, 1.1])
        draw_panel(loss, comparison, loss_panel(comparison, axis, name))
        draw_panel(metric, comparison, metric_panel(comparison, axis, name))
        draw_cost(cost, comparison.series)
        draw_legend(part, comparison)
    return figure


def diagnostics_figure(comparison: Comparison) -> Figure | None:
    """Every other metric that was logged, against steps; ``None`` where there is none."""
    shown = {*TRAIN_LOSS, ("test", comparison.metric)}
    keys = sorted({key for s in comparison.series for run in s.runs for key in run.curves} - shown)
    # A metric that was measured once makes a point, not a curve.
    keys = [key for key in keys if _longest(comparison, key) > 1]
    if not keys:
        return None
    columns = min(_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure(3.6 * columns, 0.5 + 2.8 * rows)
    grid = np.atleast_1d(np.asarray(figure.subplots(rows, columns))).ravel()
    for axes, key in zip(grid, keys, strict=False):
        name = " ".join(key).replace("/", "\n")  # longer lines reach into the next panel
        draw_panel(axes, comparison, Panel((key,), name, "steps", "optimizer steps"))
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    draw_legend(figure, comparison, target=False)
    return figure


def _parts(figure: Figure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    parts: NDArray[Any] = np.atleast_1d(np.asarray(figure.subfigures(rows, columns, **ratios)))
    return [part for part in parts.ravel() if isinstance(part, SubFigure)]


def heading(comparison: Comparison) -> str:
    """Above a figure: what is compared, and on which data."""
    return f"{comparison.title}    (data: {comparison.provenance})"


def _longest(comparison: Comparison, key: Key) -> int:
    runs = (run for series in comparison.series for run in series.runs)
    return max((len(run.curves[key].steps) for run in runs if key in run.curves), default=0)
