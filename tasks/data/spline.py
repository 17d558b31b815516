"""Natural cubic splines through what was observed, for a whole data set at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fill(values: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
    """Values at all times of a regular grid, with those that are missing interpolated.

    Every channel of every series gets the natural cubic spline through its own observations; before
    the first and after the last one it is constant. A channel without any observation is 0, the
    mean of standardised data.

    Args:
        values: series on a common regular grid, NaN where nothing was observed.
    """
    columns = values.transpose(0, 2, 1).reshape(-1, values.shape[1])
    incomplete = np.isnan(columns).any(axis=1)
    if not incomplete.any():
        return values
    observed = ~np.isnan(columns)
    knots = observed.sum(axis=1)
    # Most series only end early: what follows their last value repeats it.
    grid = np.arange(values.shape[1])
    short = incomplete & (knots > 0) & (observed == (grid < knots[:, None])).all(axis=1)
    filled = columns.copy()
    last = np.minimum(grid, knots[short][:, None] - 1)
    filled[short] = np.take_along_axis(columns[short], last, axis=1)
    gaps = incomplete & ~short
    if gaps.any():
        filled[gaps] = _interpolate(columns[gaps])
    return filled.reshape(values.shape[0], values.shape[2], -1).transpose(0, 2, 1)


def _interpolate(rows: Float[Array, "r t"]) -> Float[Array, "r t"]:
    count, length = rows.shape
    grid = np.arange(length, dtype=np.float64)
    observed = ~np.isnan(rows)
    knots = observed.sum(axis=1)
    # Every row's observations first, in order; places after them repeat the last one.
    order = np.argsort(~observed, axis=1, kind="stable")
    last = np.maximum(knots - 1, 0)[:, None]
    places = np.take_along_axis(order, np.minimum(np.arange(length), last), axis=1)
    x = places.astype(np.float64)
    y = np.nan_to_num(np.take_along_axis(rows, places, axis=1))
    curvature = _second_derivatives(x, y, knots)

    interval = np.clip(np.cumsum(observed, axis=1) - 1, 0, np.maximum(last - 1, 0))
    x0, y0, m0 = (np.take_along_axis(a, interval, axis=1) for a in (x, y, curvature))
    x1, y1, m1 = (np.take_along_axis(a, interval + 1, axis=1) for a in (x, y, curvature))
    at = np.clip(grid, x[:, :1], np.take_along_axis(x, last, axis=1))
    h = np.where(x1 > x0, x1 - x0, 1.0)
    a, b = (x1 - at) / h, (at - x0) / h
    spline = a * y0 + b * y1 + ((a**3 - a) * m0 + (b**3 - b) * m1) * h**2 / 6.0
    single = np.broadcast_to(y[:, :1], (count, length))  # one observation, or none
    return np.where((knots > 1)[:, None], spline, single)


def _second_derivatives(
    x: Float[Array, "r t"], y: Float[Array, "r t"], knots: NDArray[np.int64]
) -> Float[Array, "r t"]:
    """Second derivatives at the knots, zero at both ends: tridiagonal systems solved side by side.

    Source: Press et al., Numerical Recipes, section 3.3.
    """
    length = x.shape[1]
    upper, right = np.zeros_like(x), np.zeros_like(x)
    for i in range(1, length - 1):
        inner = i < knots - 1
        before = np.where(inner, x[:, i] - x[:, i - 1], 1.0)
        after = np.where(inner, x[:, i + 1] - x[:, i], 1.0)
        jump = (y[:, i + 1] - y[:, i]) / after - (y[:, i] - y[:, i - 1]) / before
        pivot = 2.0 * (before + after) - before * upper[:, i - 1]
        upper[:, i] = np.where(inner, after / pivot, 0.0)
        right[:, i] = np.where(inner, (6.0 * jump - before * right[:, i - 1]) / pivot, 0.0)
    solution = np.zeros_like(x)
    for i in range(length - 2, 0, -1):
        solution[:, i] = right[:, i] - upper[:, i] * solution[:, i + 1]
    return solution
