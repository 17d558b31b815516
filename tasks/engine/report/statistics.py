"""Aggregation over seeds: medians with their range, and curves put on a common axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.engine.records.metrics import Axis, Curve


@dataclass(frozen=True)
class Spread:
    """Median and range of one number over seeds.

    ``inf`` stands for "never happened" (a target not reached) and takes part in the median; NaN
    does not, and a spread of nothing is NaN.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of the values that are not NaN."""
        kept = sorted(v for v in values if not math.isnan(v))
        if not kept:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(_median(kept), kept[0], kept[-1], len(kept))


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    # inf + finite is inf: half of the seeds missing the target means that the median misses it.
    return (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(frozen=True)
class Band:
    """Median curve and range over seeds on a common axis, every array of shape (K,)."""

    x: NDArray[np.float64]
    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def band(curves: Sequence[Curve], axis: Axis, *, log: bool = False, points: int = 240) -> Band:
    """Median and range of several curves where all of them are defined.

    Args:
        curves: one curve a seed.
        axis: what they are drawn against.
        log: interpolate logarithms, for curves that span decades and are drawn on a log scale.
        points: size of the common grid.

    Returns:
        The band over the stretch of the axis that every curve covers; empty if there is none.
    """
    parts = [c.finite() for c in curves]
    parts = [c for c in parts if len(c.values)]
    empty = np.empty(0)
    if not parts:
        return Band(empty, empty, empty, empty)
    start = max(float(c.along(axis)[0]) for c in parts)
    stop = min(float(c.along(axis)[-1]) for c in parts)
    if stop < start:
        return Band(empty, empty, empty, empty)
    # A single seed, or seeds measured at the same places, need no interpolation.
    grids = [c.along(axis) for c in parts]
    shared = all(len(g) == len(grids[0]) and np.array_equal(g, grids[0]) for g in grids[1:])
    x = grids[0] if shared else np.linspace(start, stop, points)
    rows = np.stack([_interpolate(c, axis, x, log) for c in parts])
    return Band(x, np.median(rows, axis=0), rows.min(axis=0), rows.max(axis=0))


def _interpolate(
    curve: Curve, axis: Axis, x: NDArray[np.float64], log: bool
) -> NDArray[np.float64]:
    if not log:
        return np.interp(x, curve.along(axis), curve.values)
    logs = np.log(np.maximum(curve.values, np.finfo(np.float64).tiny))
    return np.exp(np.interp(x, curve.along(axis), logs))


def spans_decades(curves: Iterable[Curve], decades: float = 1.0) -> bool:
    """Whether no value is negative and those above 0 differ by more than ``10**decades``.

    Such are drawn on a log scale; a training loss can underflow to 0.
    """
    values = [c.finite().values for c in curves]
    joined = np.concatenate(values) if values else np.empty(0)
    above = joined[joined > 0]
    if not len(above) or joined.min() < 0:
        return False
    return bool(above.max() / above.min() > 10.0**decades)
