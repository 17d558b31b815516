"""Pictures of the families' own tasks, drawn from finished runs and their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tasks.common.figures import new_figure
from tasks.engine.records.runs import Run
from tasks.engine.report.nfe import per_step
from tasks.engine.report.reload import Rebuilt, rebuild

COLOURS = {
    "node": "#0072B2",
    "anode": "#56B4E9",
    "sonode": "#E69F00",
    "hbnode": "#D55E00",
    "ghbnode": "#009E73",
    "adamnode": "#CC79A7",
    "nesterovnode": "#882255",
}
CHANNELS = ("force", "voltage", "acceleration 1", "acceleration 2", "acceleration 3")
_GRID = 101
_SHOWN = 16  # points of a window before its forecast


def by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of every family, in the usual order and further ones behind, sorted by seed."""
    found: dict[str, list[Run]] = {name: [] for name in COLOURS}
    for run in sorted(runs, key=lambda r: (r.model, r.seed)):
        found.setdefault(run.model, []).append(run)
    return {name: members for name, members in found.items() if members}


def colour(name: str) -> str:
    """A family's colour; one grey for those that have none of their own."""
    return COLOURS.get(name, "#555555")


def point_cloud_figure(runs: Sequence[Run]) -> Figure:
    """Decision regions of every family's first seed, and evaluations over training."""
    families = by_model(runs)
    columns = max(len(families), 2)
    figure = new_figure(2.5 * columns, 6.4)
    regions, curves = np.asarray(figure.subfigures(2, 1, height_ratios=[1.0, 1.15]))
    grid = regions.subplots(1, columns, squeeze=False)[0]
    for axes, (name, members) in zip(grid, families.items(), strict=False):
        _draw_regions(axes, rebuild(members[0]))
        loss = members[0].curves[("train", "loss")].final
        axes.set_title(f"{name}, seed {members[0].seed}\ntraining MSE {loss:.2g}", fontsize=9)
    for axes in grid[len(families) :]:
        axes.set_axis_off()
    _draw_both_solves(curves.subplots(1, 2), families)
    curves.legend(handles=_handles(families), **_BELOW)
    figure.suptitle(_title(runs), fontsize=11, fontweight="bold")
    return figure


def training_figure(runs: Sequence[Run]) -> Figure:
    """The test metric of every family over training, and evaluations of both solves."""
    families, metric = by_model(runs), runs[0].metric
    figure = new_figure(13.5, 4.4)
    first, *solves = figure.subplots(1, 3)
    for name, members in families.items():
        for run in members:
            curve = run.curves["test", metric]
            trained = curve.steps > 0  # untrained, all families are at chance
            first.plot(
                curve.steps[trained], curve.values[trained], ".-", color=colour(name), alpha=0.8
            )
    first.set_xlabel("optimizer steps", fontsize=9)
    first.set_ylabel(f"test {metric}", fontsize=9)
    _plain(first)
    _draw_both_solves(solves, families)
    figure.legend(handles=_handles(families), **_BELOW)
    figure.suptitle(_title(runs), fontsize=11, fontweight="bold")
    return figure


def growth_figure(growth: Mapping[str, Mapping[str, np.ndarray]], output: np.ndarray) -> Figure:
    """The norm of untrained states over time, one panel a kind of forcing.

    Args:
        growth: forcing to family to norms of shape (draws, times).
        output: size of the measured output at the same times.
    """
    titles = {
        "ramp_as_published": "forced by a ramp, as in the released code",
        "interpolated": "forced by the measured voltage",
    }
    figure = new_figure(5.6 * len(growth), 4.6)
    panels = figure.subplots(1, len(growth), sharey=True, squeeze=False)[0]
    for axes, (forcing, families) in zip(panels, growth.items(), strict=True):
        for name, norms in families.items():
            times = np.arange(norms.shape[1])
            axes.plot(times, norms.mean(axis=0), color=colour(name), linewidth=2.0)
            for draw in norms:
                axes.plot(times, draw, color=colour(name), alpha=0.22, linewidth=0.7)
        axes.plot(np.arange(len(output)), output, color="#444444", linestyle="dotted")
        axes.set_yscale("log")
        axes.set_ylim(1e-3, None)
        axes.set_title(titles.get(forcing, forcing), fontsize=10)
        axes.set_xlabel("time (samples)", fontsize=9)
        _plain(axes)
    panels[0].set_ylabel("norm of the state: mean (thick), draws (thin)", fontsize=9)
    first = next(iter(growth.values()))
    note = Line2D([], [], color="#444444", linestyle="dotted", label="measured output")
    figure.legend(handles=[*_handles(first), note], **_BELOW)
    return figure


def forecast_figure(runs: Sequence[Run]) -> Figure:
    """Forecasts of the plane's vibration: three test windows, and errors by how far ahead."""
    families = by_model(runs)
    made = {name: rebuild(members[0]) for name, members in families.items()}
    test = next(iter(made.values())).splits.test
    shown = np.linspace(0, len(test[0]) - 1, 5).astype(int)[1:4]
    window = test[0].shape[1]
    truth = test[-1].numpy()
    figure = new_figure(12.0, 8.2)
    upper, lower = np.asarray(figure.subfigures(2, 1))
    with torch.no_grad():
        outputs = {name: m.forward(test).numpy() for name, m in made.items()}
    # The targets' last group is the forecast, at unit spacing; what came before has gaps.
    gaps = test[1].numpy()
    for axes, index in zip(upper.subplots(1, len(shown)), shown, strict=True):
        past = -np.cumsum(gaps[index, ::-1])[::-1]
        axes.plot(past[-_SHOWN:], truth[index, :window, 2][-_SHOWN:], "o-", **_TRUTH)
        ahead = np.arange(truth.shape[1] - 2 * window)
        axes.plot(ahead, truth[index, 2 * window :, 2], "o-", **_TRUTH)
        for name, out in outputs.items():
            axes.plot(ahead, out[index, 2 * window :, 2], color=colour(name), linewidth=1.6)
        axes.axvline(0, color="#BBBBBB", linewidth=0.8)
        axes.set_title(f"test window {index}: {CHANNELS[2]}", fontsize=9)
        axes.set_xlabel("samples after the window", fontsize=9)
        _plain(axes)
    upper.axes[0].set_ylabel("standardised value", fontsize=9)
    errors, channels = lower.subplots(1, 2, width_ratios=[1.3, 1.0])
    for name, members in families.items():
        ahead, series = _errors_ahead(members, window, made[name])
        errors.plot(ahead, np.median(series, axis=0), color=colour(name), linewidth=1.8)
        for one in series if len(series) > 1 else ():
            errors.plot(ahead, one, color=colour(name), alpha=0.3, linewidth=0.7)
    errors.set_xlabel("samples after the window", fontsize=9)
    errors.set_ylabel("mean squared error, test (log)", fontsize=9)
    errors.set_yscale("log")
    _plain(errors)
    _draw_channels(channels, outputs, truth, 2 * window)
    handles = [Line2D([], [], label="measured", marker="o", **_TRUTH), *_handles(families)]
    lower.legend(handles=handles, **_BELOW)
    figure.suptitle(_title(runs), fontsize=11, fontweight="bold")
    return figure


_TRUTH: dict[str, Any] = {"color": "#333333", "markersize": 3, "linewidth": 0.9}
_BELOW: dict[str, Any] = {
    "loc": "outside lower center",
    "ncols": 7,
    "fontsize": 9,
    "frameon": False,
}


def _draw_regions(axes: Axes, made: Rebuilt) -> None:
    """The output over the plane, its sign's border, and the training points."""
    points, targets = (part.numpy() for part in made.splits.train)
    edge = np.linspace(-1.2, 1.2, _GRID)
    plane = np.stack(np.meshgrid(edge, edge), axis=-1).reshape(-1, 2)
    inputs = torch.as_tensor(plane, dtype=made.splits.train[0].dtype)
    with torch.no_grad():
        out = made.forward((inputs, inputs[:, :1])).numpy().reshape(_GRID, _GRID)
    axes.contourf(edge, edge, out, levels=np.linspace(-1, 1, 21), cmap="RdBu_r", alpha=0.75)
    axes.contour(edge, edge, out, levels=[0.0], colors="black", linewidths=0.9)
    inner = targets[:, 0] < 0
    axes.scatter(points[inner, 0], points[inner, 1], s=9, color="#08306B", zorder=3)
    axes.scatter(points[~inner, 0], points[~inner, 1], s=9, color="#67000D", zorder=3)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_both_solves(pair: Sequence[Axes], families: Mapping[str, Sequence[Run]]) -> None:
    for part, (axes, word) in enumerate(zip(pair, ("forward", "backward"), strict=True)):
        for name, members in families.items():
            _draw_evaluations(axes, members, part, colour(name))
        axes.set_xlabel("optimizer steps", fontsize=9)
        axes.set_ylabel(f"evaluations of a {word} solve", fontsize=9)
        _plain(axes)


def _draw_evaluations(axes: Axes, members: Sequence[Run], part: int, tint: str) -> None:
    traces = [per_step(run) for run in members]
    traces = [trace for trace in traces if len(trace.steps)]
    for trace in traces:
        axes.plot(trace.steps, trace.parts[part], color=tint, alpha=0.25, linewidth=0.7)
    shared = min((len(trace.steps) for trace in traces), default=0)
    if shared:
        middle = np.median([trace.parts[part][:shared] for trace in traces], axis=0)
        axes.plot(traces[0].steps[:shared], middle, color=tint, linewidth=1.8)


def _errors_ahead(
    members: Sequence[Run], window: int, first: Rebuilt
) -> tuple[np.ndarray, np.ndarray]:
    """Points ahead, and every seed's mean squared error there."""
    series = []
    for place, run in enumerate(members):
        made = first if place == 0 else rebuild(run)
        with torch.no_grad():
            wrong = (made.forward(made.splits.test) - made.splits.test[-1])[:, 2 * window :]
        series.append(wrong.square().mean(dim=(0, 2)).numpy())
    return np.arange(len(series[0])), np.stack(series)


def _draw_channels(
    axes: Axes, outputs: Mapping[str, np.ndarray], truth: np.ndarray, start: int
) -> None:
    width = 0.8 / len(outputs)
    places = np.arange(truth.shape[2])
    for index, (name, out) in enumerate(outputs.items()):
        error = ((out - truth)[:, start:] ** 2).mean(axis=(0, 1))
        axes.bar(places + (index + 0.5) * width - 0.4, error, width, color=colour(name))
    axes.set_xticks(places, CHANNELS, fontsize=8, rotation=15)
    axes.set_ylabel("mean squared error of the forecast (log)", fontsize=9)
    axes.set_yscale("log")
    _plain(axes)


def _title(runs: Sequence[Run]) -> str:
    steps = " / ".join(sorted({str(run.steps) for run in runs}))
    data = " / ".join(sorted({run.provenance for run in runs}))
    return f"{runs[0].task} after {steps} steps    (data: {data})"


def _handles(families: Mapping[str, object]) -> list[Line2D]:
    return [Line2D([], [], color=colour(name), linewidth=2.0, label=name) for name in families]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
