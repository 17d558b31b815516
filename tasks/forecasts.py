"""Pictures of forecasts: phase portraits beside the truth, and how errors grow with time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snopt import SolverError
from tasks.common.figures import new_figure
from tasks.data.systems import Array, Units
from tasks.task import Trained

_DRAWN = 3
"""Test trajectories in a phase portrait."""
_TRUTH = "#b0b0b0"
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Forecast:
    """Test trajectories in physical units, as they are and as a model forecasts them.

    Attributes:
        times: of the first test trajectory, its start first, shape (1 + L,).
        truth: shape (N, 1 + L, D).
        states: the forecast, likewise.
        errors: at each time, the root mean square over the measured parts and the test
            trajectories, shape (L,).
    """

    times: Array
    truth: Array
    states: Array
    errors: Array


def forecast_of(trained: Trained, units: Units) -> Forecast | None:
    """What a model forecasts; ``None`` where a solve fails."""
    start, times, targets, _ = trained.splits.test
    try:
        with torch.no_grad():
            outputs = trained.model.eval()(start, times)
    except (SolverError, RuntimeError):  # memory too
        return None
    centre, scale = np.array(units.centre), np.array(units.scale)

    def physical(states: torch.Tensor) -> Array:
        whole = torch.cat([start.unsqueeze(1), states], dim=1)
        found: Array = whole.double().numpy() * scale + centre
        return found

    truth, states = physical(targets), physical(outputs)
    squares = np.square((states - truth)[:, 1:, : units.measured])
    return Forecast(
        np.concatenate([[0.0], times[0].double().numpy() * units.unit]),
        truth,
        states,
        np.sqrt(squares.mean(axis=(0, 2))),
    )


def forecast_figure(
    title: str, trained: Sequence[Trained], units: Units, interval: float
) -> Figure | None:
    """A phase portrait for each model, and the errors of all of them against time.

    Args:
        title: above all.
        trained: models; one whose solve fails is left out.
        units: of the state.
        interval: time from the start that training sees.
    """
    shown = [(one, found) for one in trained if (found := forecast_of(one, units)) is not None]
    if not shown:
        return None
    panels = 1 + len(shown)
    rows = 1 if panels <= 4 else 2
    columns = -(-panels // rows)
    figure = new_figure(3.3 * columns, 3.4 * rows + 0.8)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    cells = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in cells[panels:]:
        axes.set_visible(False)
    first, found = shown[0]
    low, high = _corners(_training(first, units), found.truth[:_DRAWN])
    for axes, (one, found) in zip(cells, shown, strict=False):
        _portrait(axes, one, found, units, interval)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
    figure.legend(
        *cells[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    _growth(cells[len(shown)], shown, units, interval)
    for axes in cells:
        axes.tick_params(which="both", labelsize=8)
    return figure


def _training(one: Trained, units: Units) -> Array:
    """Where training segments start, shape (N, D)."""
    found: Array = one.splits.train[0].double().numpy() * units.scale + np.array(units.centre)
    return found


def _corners(*states: Array) -> tuple[Array, Array]:
    """Of a rectangle around all but the outermost states (..., D), with a margin."""
    flat = np.concatenate([part.reshape(-1, part.shape[-1]) for part in states])
    low, high = np.quantile(flat, [0.005, 0.995], axis=0)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _portrait(axes: Axes, one: Trained, found: Forecast, units: Units, interval: float) -> None:
    """The first two parts of the state: truth, forecast, and where training data start."""
    starts = _training(one, units).T[:2]
    axes.plot(*starts, ".", color="#d0d0d0", markersize=2.5, zorder=0, label="training data")
    seen = int(np.searchsorted(found.times, interval * (1 + 1e-6)))
    last = len(found.times)
    for number in range(min(_DRAWN, len(found.truth))):
        truth, states = found.truth[number].T[:2], found.states[number].T[:2]
        axes.plot(*truth, color=_TRUTH, linewidth=2.5, label=None if number else "truth")
        name = None if number else "forecast"
        axes.plot(*states[:, :seen], color=one.colour, linewidth=1.0, label=name)
        name = "beyond the training interval" if not number and seen < last else None
        axes.plot(*states[:, seen - 1 :], ":", color=one.colour, linewidth=1.2, label=name)
        axes.plot(*truth[:, :1], "o", color="black", markersize=3)
    axes.set_title(one.caption("rmse"), fontsize=10, color=one.colour)
    axes.set_xlabel(units.names[0], fontsize=9)
    axes.set_ylabel(units.names[1], fontsize=9)


def _growth(
    axes: Axes, shown: Sequence[tuple[Trained, Forecast]], units: Units, interval: float
) -> None:
    seen: list[str] = []
    for one, found in shown:
        style = _STYLES[seen.count(one.colour) % len(_STYLES)]  # rules of one optimizer share it
        seen.append(one.colour)
        axes.semilogy(
            found.times[1:], found.errors, style, color=one.colour, linewidth=1.3, label=one.label
        )
    if interval < shown[0][1].times[-1]:
        axes.axvline(interval, color="#888888", linestyle="--", linewidth=0.8)
    axes.set_title("error of the forecasts\nroot mean square over the test set", fontsize=10)
    axes.set_ylabel(", ".join(units.names[: units.measured]), fontsize=9)
    axes.set_xlabel(f"{units.time} since the start", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
