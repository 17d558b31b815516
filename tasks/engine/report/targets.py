"""Time to target: how soon each optimizer gets where the best first-order optimizer ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.engine.records.metrics import Axis, Curve, Key
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison, Series, find_curve
from tasks.engine.report.spread import Spread

AXES: tuple[Axis, ...] = ("seconds", "steps", "nfe")


@dataclass(frozen=True)
class Reach:
    """When one series reaches the target, over its seeds.

    Attributes:
        reached: seeds that reach it; ``runs`` is how many there are.
        cost: training seconds, steps and field evaluations until then; ``inf`` where never.
        ratio: seconds, divided by the reference optimizer's seconds to the same target.
        share: seconds, divided by the reference optimizer's whole training time.
    """

    reached: int
    runs: int
    cost: Mapping[Axis, Spread]
    ratio: Spread
    share: Spread


@dataclass(frozen=True)
class Race:
    """The race of one comparison to one target.

    Every seed has a target of its own: what the reference optimizer ends with on that seed, which
    shares the data split, the initial weights and the order of batches. The reference therefore
    reaches its target on every seed, and each ratio compares like with like. A seed that the
    reference did not run takes the median of those it did.

    Attributes:
        key: the curve that is raced on.
        reference: label of the first-order series with the best median final value.
        target: the targets over the reference's seeds.
        reaches: by label of the series.
        spacing: seconds between two measurements; no time to target is known more finely.
    """

    key: Key
    reference: str
    target: Spread
    reaches: Mapping[str, Reach]
    spacing: Spread


def race(comparison: Comparison, keys: tuple[Key, ...], *, higher: bool = False) -> Race | None:
    """Run the race on one curve; ``None`` without a first-order series that measured it.

    Args:
        comparison: series to race.
        keys: where the curve is looked for, in this order.
        higher: whether larger values are better.
    """
    sign = -1.0 if higher else 1.0
    entrants = [s for s in comparison.series if s.first_order and s.curves(keys)]
    ranked = sorted(entrants, key=lambda s: sign * final(s, keys, higher=higher).median)
    if not ranked or not math.isfinite(final(ranked[0], keys, higher=higher).median):
        return None
    reference = ranked[0]
    marks = _marks(reference, keys, sign)
    return Race(
        key=keys[0],
        reference=reference.label,
        target=Spread.of(mark.value for seed, mark in marks.items() if seed is not None),
        reaches={s.label: _reach(s, keys, marks, sign) for s in comparison.series},
        spacing=_spacing(comparison, keys),
    )


def race_on_loss(comparison: Comparison) -> Race | None:
    """The race to the best first-order optimizer's final training loss."""
    return race(comparison, TRAIN_LOSS)


def race_on_metric(comparison: Comparison) -> Race | None:
    """The race to the best first-order optimizer's final test metric."""
    keys = (("test", comparison.metric),)
    return race(comparison, keys, higher=comparison.higher_is_better)


def final(series: Series, keys: tuple[Key, ...], *, higher: bool = False) -> Spread:
    """Last measured values over seeds; a run that diverged counts as the worst possible."""
    worst = -math.inf if higher else math.inf
    values = [_final(run, keys) for run in series.runs if find_curve(run, keys) is not None]
    return Spread.of(v if math.isfinite(v) else worst for v in values)


def _final(run: Run, keys: tuple[Key, ...]) -> float:
    curve = find_curve(run, keys)
    # What a diverged run measured before it blew up is no result.
    return math.nan if curve is None or run.outcome == "diverged" else curve.final


def first_reach(curve: Curve, target: float, sign: float) -> int | None:
    """Index of the first measurement at least as good as the target (``sign`` 1: lower is better).

    Values between two measurements are not interpolated: a target counts as reached when a
    measurement shows it.
    """
    good = np.flatnonzero(sign * curve.values <= sign * target)
    return int(good[0]) if len(good) else None


@dataclass(frozen=True)
class _Mark:
    """A target, and the reference's seconds to it and in all."""

    value: float
    seconds: float
    total: float


def _marks(reference: Series, keys: tuple[Key, ...], sign: float) -> dict[int | None, _Mark]:
    """Targets by seed; under ``None`` the median one, for seeds the reference did not run."""
    marks: dict[int | None, _Mark] = {}
    for run in reference.runs:
        curve = find_curve(run, keys)
        value = _final(run, keys)
        if curve is None or not math.isfinite(value):
            continue
        index = first_reach(curve, value, sign)
        seconds = float(curve.seconds[-1 if index is None else index])
        marks[run.seed] = _Mark(value, seconds, float(curve.seconds[-1]))
    own = list(marks.values())
    marks[None] = _Mark(
        Spread.of(m.value for m in own).median,
        Spread.of(m.seconds for m in own).median,
        Spread.of(m.total for m in own).median,
    )
    return marks


def _reach(
    series: Series, keys: tuple[Key, ...], marks: Mapping[int | None, _Mark], sign: float
) -> Reach:
    costs: dict[Axis, list[float]] = {axis: [] for axis in AXES}
    ratios, shares = [], []
    for run in series.runs:
        mark = marks.get(run.seed, marks[None])
        cost = _cost(run, keys, mark.value, sign)
        for axis in AXES:
            costs[axis].append(cost[axis])
        ratios.append(_divide(cost["seconds"], mark.seconds))
        shares.append(_divide(cost["seconds"], mark.total))
    return Reach(
        reached=sum(math.isfinite(value) for value in costs["seconds"]),
        runs=len(series.runs),
        cost={axis: Spread.of(values) for axis, values in costs.items()},
        ratio=Spread.of(ratios),
        share=Spread.of(shares),
    )


def _cost(run: Run, keys: tuple[Key, ...], target: float, sign: float) -> dict[Axis, float]:
    curve = find_curve(run, keys)
    index = None if curve is None else first_reach(curve, target, sign)
    if curve is None or index is None:
        return dict.fromkeys(AXES, math.inf)
    return {axis: float(curve.along(axis)[index]) for axis in AXES}


def _spacing(comparison: Comparison, keys: tuple[Key, ...]) -> Spread:
    curves = [curve for s in comparison.series for curve in s.curves(keys)]
    return Spread.of(float(gap) for curve in curves for gap in np.diff(curve.seconds))


def _divide(a: float, b: float) -> float:
    # A target that already holds before the first step says nothing about speed.
    return a / b if b > 0 else math.nan
