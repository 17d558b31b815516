"""Pictures of two-dimensional densities: what a flow has learned, and what it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from snopt import SolverError
from tasks.common.figures import new_figure
from tasks.common.seeding import stream
from tasks.task import Trained

Points = NDArray[np.float64]

_GRID = 200  # points along each side of a density's picture
_SAMPLES = 4000
_COLOURS = "magma"


@dataclass(frozen=True)
class Picture:
    """What one trained flow looks like.

    Attributes:
        low: left and lower end of what is drawn.
        high: right and upper end.
        test: the run's own test points, shape (N, 2).
        density: on the grid, shape (G, G), the second coordinate first.
        samples: draws, shape (N, 2).
    """

    low: Points
    high: Points
    test: Points
    density: Points
    samples: Points


def density_figure(title: str, trained: Sequence[Trained]) -> Figure | None:
    """Density and samples of trained flows in the plane beside the test data.

    Args:
        title: above all.
        trained: flows; one whose solve fails is left out.
    """
    shown = [(one, picture) for one in trained if (picture := picture_of(one)) is not None]
    return _draw(title, shown) if shown else None


def picture_of(trained: Trained) -> Picture | None:
    """What a flow looks like; ``None`` where a solve fails."""
    model: Any = trained.model.eval()
    for block in model.blocks:  # two columns of a Jacobian cost little, and have no noise
        block.field.divergence = "exact"
    noise = stream(trained.seed, "noise")
    test = trained.splits.test[0]
    low, high = _square(test.double().numpy())
    axes = [torch.linspace(float(low[i]), float(high[i]), _GRID) for i in range(2)]
    grid = torch.cartesian_prod(*axes[::-1]).flip(1).to(test.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            density = model(grid, noise).exp().reshape(_GRID, _GRID)
            samples, _ = model.sample(_SAMPLES, noise)
    except (SolverError, RuntimeError):  # memory too
        return None
    return Picture(
        low, high, test.double().numpy(), density.double().numpy(), samples.double().numpy()
    )


def _square(points: Points) -> tuple[Points, Points]:
    """Corners of a square around nearly all points."""
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) / 2
    return middle - 1.15 * half, middle + 1.15 * half


def _draw(title: str, shown: Sequence[tuple[Trained, Picture]]) -> Figure:
    first = shown[0][1]
    test, low, high = first.test, first.low, first.high
    columns = 1 + len(shown)
    figure = new_figure(2.75 * columns + 1.1, 6.3)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    grid = figure.subplots(2, columns, sharex=True, sharey=True)
    bins = [np.linspace(low[i], high[i], 61) for i in range(2)]
    counted = np.histogram2d(test[:, 0], test[:, 1], bins=bins, density=True)[0].T
    # One scale for all, so that a density that is too flat looks it.
    top = float(np.quantile(counted[counted > 0], 0.99))

    def paint(axes: Axes, values: Points, low: Points, high: Points) -> Any:
        return axes.imshow(
            values,
            origin="lower",
            extent=(float(low[0]), float(high[0]), float(low[1]), float(high[1])),
            cmap=_COLOURS,
            vmin=0.0,
            vmax=top,
            interpolation="bilinear",
        )

    def scatter(axes: Axes, points: Points, tint: str) -> None:
        axes.plot(*points.T, ".", color=tint, markersize=2, alpha=0.5, markeredgewidth=0)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.set_aspect("equal")

    painted = paint(grid[0, 0], counted, low, high)
    grid[0, 0].set_title(f"test data\n{len(test)} points", fontsize=10)
    scatter(grid[1, 0], test[:_SAMPLES], "#444444")
    for column, (one, picture) in enumerate(shown, start=1):
        paint(grid[0, column], picture.density, picture.low, picture.high)
        grid[0, column].set_title(one.caption("nll"), fontsize=10, color=one.colour)
        scatter(grid[1, column], picture.samples, one.colour)
    grid[0, 0].set_ylabel("density", fontsize=10)
    grid[1, 0].set_ylabel(f"{_SAMPLES} samples", fontsize=10)
    for axes in grid.ravel():
        axes.tick_params(labelsize=8)
    bar = figure.colorbar(painted, ax=grid.ravel().tolist(), shrink=0.42, anchor=(0.0, 0.95))
    bar.set_label("probability per unit area", fontsize=9)
    return figure
