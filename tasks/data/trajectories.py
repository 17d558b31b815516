"""Measured trajectories, cut into segments: an initial state, and what was measured after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.data.errors import DataError
from tasks.data.systems import Array, System, solve

Mask = NDArray[np.bool_]
Cuts = Literal["overlapping", "apart", "chained"]

FINER = 4
"""Points of the grid that irregular times are drawn from, for each point of the regular one."""

HISTORY = 3
"""Measurements, the start's own among them, that a velocity is estimated from."""


@dataclass(frozen=True)
class Sampling:
    """When and how trajectories are measured.

    Attributes:
        interval: time from the first to the last measurement, where times are regular.
        points: measurements of a trajectory.
        irregular: draw the times after the first evenly, for each trajectory its own.
        noise: standard deviation of Gaussian noise, in the system's scale.
        missing: share of the values after the first rows that are not measured, at random.
        segment: rows of a segment, its start among them; None: the whole trajectory.
        cuts: whether a segment starts at every row (``overlapping``), where the last one ended
            (``apart``), or there and also where not all was measured (``chained``).
    """

    interval: float
    points: int
    irregular: bool = False
    noise: float = 0.0
    missing: float = 0.0
    segment: int | None = None
    cuts: Cuts = "overlapping"


@dataclass(frozen=True)
class Segments:
    """Parts of trajectories.

    Attributes:
        start: initial states as they were measured, shape (N, D).
        times: since the start, ascending, shape (N, L).
        targets: states at these times, NaN where they were not measured, shape (N, L, D).
        linked: whether the next segment starts when this one ends, shape (N,); None: they were
            not cut to be joined.
    """

    start: Array
    times: Array
    targets: Array
    linked: Mask | None = None


def simulated(
    system: System, sampling: Sampling, count: int, rng: np.random.Generator, *, first: bool = False
) -> Segments:
    """Segments of trajectories from drawn initial states.

    Args:
        system: what flows.
        sampling: how it is measured.
        count: trajectories.
        rng: draws initial states, times, noise and what is missing.
        first: whether the first trajectory starts where the system says.

    Raises:
        DataError: no segment can start anywhere: too much is missing.
    """
    starts = rng.uniform(system.low, system.high, (count, len(system.low)))
    if first and system.first is not None:
        starts[0] = system.first
    last = FINER * (sampling.points - 1)
    rows = np.tile(np.arange(0, last + 1, FINER), (count, 1))
    if sampling.irregular:
        for row in rows:
            row[1:] = 1 + np.sort(rng.choice(last, sampling.points - 1, replace=False))
    grid: Array = np.linspace(0.0, sampling.interval, last + 1)
    truth = np.take_along_axis(solve(system, starts, grid), rows[..., None], axis=1)
    seen = truth[..., : system.units.measured]
    scale = np.array(system.units.scale[: system.units.measured])
    seen = seen + sampling.noise * scale * rng.standard_normal(seen.shape)
    seen[:, HISTORY:][rng.random(seen[:, HISTORY:].shape) < sampling.missing] = np.nan
    parts = []
    for number, values in zip(rows, seen, strict=True):
        states = (
            values if values.shape[1] == truth.shape[2] else with_velocity(grid[number], values)
        )
        parts.append(cut(number, states, sampling.segment, sampling.cuts))
    found = joined(parts)
    if not len(found.start):
        raise DataError(
            f"missing={sampling.missing:g}: {count} trajectories of {sampling.points} points have "
            f"no segment of {sampling.segment} rows that starts where all was measured; lower "
            "task.missing or raise task.trajectories"
        )
    return replace(found, times=found.times * (sampling.interval / last))


def cut(times: Array, states: Array, length: int | None, cuts: Cuts = "overlapping") -> Segments:
    """Segments of one trajectory that start where everything was measured, or :func:`chained`.

    Args:
        times: shape (T,).
        states: NaN where not measured, shape (T, D).
        length: rows of a segment with its start; None: one segment, to the end.
        cuts: see :class:`Sampling`.
    """
    if cuts == "chained":
        return chained(times, states, length or len(states))
    complete = np.flatnonzero(np.isfinite(states).all(axis=1))
    if length is None:
        complete, length = complete[:1], len(states) - int(complete[0])
    fitting = complete[complete + length <= len(states)]
    if cuts == "apart":
        ended, kept = 0, []
        for row in fitting:
            if row >= ended:
                kept.append(row)
                ended = row + length - 1
        fitting = np.array(kept, dtype=np.int64)
    after = fitting[:, None] + np.arange(1, length)
    if cuts == "apart":  # nothing measured would be no error
        measured = np.isfinite(states[after]).any(axis=(1, 2))
        fitting, after = fitting[measured], after[measured]
    return Segments(states[fitting], times[after] - times[fitting, None], states[after])


def chained(times: Array, states: Array, length: int) -> Segments:
    """Segments of one trajectory, each from where the last one ended, through all of it.

    Rows are those after the start *and the start's own*, at time 0, so that a start may be wrong.
    The last segment is filled up with rows at its end of which nothing was measured.

    Args:
        times: shape (T,).
        states: NaN where not measured, shape (T, D); starts among them are interpolated.
        length: rows of a segment with its start.
    """
    first = int(np.flatnonzero(np.isfinite(states).all(axis=1))[0])
    starts = np.arange(first, max(first + 1, len(states) - 1), length - 1)
    rows = starts[:, None] + np.arange(length)
    inside = np.minimum(rows, len(states) - 1)
    targets = np.where((rows < len(states))[..., None], states[inside], np.nan)
    known = [np.isfinite(column) for column in states.T]
    filled = [np.interp(times, times[k], c[k]) for c, k in zip(states.T, known, strict=True)]
    linked = np.ones(len(starts), dtype=np.bool_)
    linked[-1] = False
    return Segments(
        np.stack(filled, axis=1)[starts], times[inside] - times[starts, None], targets, linked
    )


def joined(parts: Iterable[Segments]) -> Segments:
    """All segments of several trajectories."""
    found = list(parts)
    linked = [part.linked for part in found if part.linked is not None]
    return Segments(
        np.concatenate([part.start for part in found]),
        np.concatenate([part.times for part in found]),
        np.concatenate([part.targets for part in found]),
        np.concatenate(linked) if linked else None,
    )


def with_velocity(times: Array, positions: Array) -> Array:
    """Positions, and beside them velocities at the same times, from past positions alone.

    A velocity is the slope of the parabola through the last three positions, of second order in
    their distance.

    Args:
        times: ascending, shape (T,).
        positions: NaN where not measured, shape (T, D).

    Returns:
        Shape (T, 2 D); velocities are NaN where one of the three is, and in the first two rows.
    """
    gaps = np.diff(times)[:, None]
    slopes = np.diff(positions, axis=0) / gaps
    bend = (slopes[1:] - slopes[:-1]) / (gaps[1:] + gaps[:-1])
    velocities = np.full_like(positions, np.nan)
    velocities[2:] = slopes[1:] + gaps[1:] * bend
    return np.concatenate([positions, velocities], axis=1)
