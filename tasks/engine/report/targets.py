"""Time to target: how soon each optimizer gets where the best first-order optimizer ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tasks.engine.records.metrics import Axis, Curve, Key
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison, Series, find_curve
from tasks.engine.report.statistics import Spread

AXES: tuple[Axis, ...] = ("seconds", "steps", "nfe")


@dataclass(frozen=True)
class Goal:
    """A measured curve, whose target is where the best first-order optimizer ends.

    Attributes:
        keys: where the curve is looked for, in this order.
        name: what readers know it by.
        higher: whether larger values are better.
    """

    keys: tuple[Key, ...]
    name: str
    higher: bool = False

    def final(self, runs: Iterable[Run]) -> Spread:
        """Last measured values of one configuration; a run that diverged has the worst possible."""
        worst = -math.inf if self.higher else math.inf
        values = [self.ended(run) for run in runs if self.curve(run) is not None]
        return Spread.of(v if math.isfinite(v) else worst for v in values)

    def ended(self, run: Run) -> float:
        """What one run ends with."""
        curve = self.curve(run)
        # What a diverged run measured before it blew up is no result.
        return math.nan if curve is None or run.outcome == "diverged" else curve.final

    def curve(self, run: Run) -> Curve | None:
        """The run's curve."""
        return find_curve(run, self.keys)

    def first_reach(self, curve: Curve, target: float) -> int | None:
        """Index of the first measurement at least as good as the target.

        Values between two measurements are not interpolated: a target counts as reached when a
        measurement shows it.
        """
        good = curve.values >= target if self.higher else curve.values <= target
        return int(np.flatnonzero(good)[0]) if good.any() else None


LOSS = Goal(TRAIN_LOSS, "training loss")


def metric_goal(comparison: Comparison) -> Goal:
    """The comparison's test metric."""
    metric = comparison.metric
    return Goal((("test", metric),), f"test {metric}", comparison.higher_is_better)


@dataclass(frozen=True)
class TargetOutcome:
    """When one series reaches the target, over its seeds.

    Attributes:
        reached: seeds that reach it; ``runs`` is how many there are.
        cost: training seconds, steps and field evaluations until then; ``inf`` where never.
        ratio: seconds, divided by the baseline's seconds to the same target.
        budget_fraction: seconds, divided by the baseline's whole training time.
    """

    reached: int
    runs: int
    cost: Mapping[Axis, Spread]
    ratio: Spread
    budget_fraction: Spread


@dataclass(frozen=True)
class TimeToTarget:
    """How soon each series of one comparison reaches a target.

    Every seed has a target of its own: what the baseline ends with on that seed, which shares the
    data split, the initial weights and the order of batches. The baseline therefore reaches its
    target on every seed, and each ratio compares like with like. A seed that the baseline did not
    run takes the median of those it did.

    Attributes:
        goal: the curve that is compared.
        baseline: label of the first-order series with the best median final value.
        target: the targets over the baseline's seeds.
        outcomes: by label of the series.
        spacing: seconds between two measurements; no time to target is known more finely.
    """

    goal: Goal
    baseline: str
    target: Spread
    outcomes: Mapping[str, TargetOutcome]
    spacing: Spread


def time_to_target(comparison: Comparison, goal: Goal) -> TimeToTarget | None:
    """Times to one goal's target; ``None`` without a first-order series that measured it."""
    sign = -1.0 if goal.higher else 1.0
    candidates = [s for s in comparison.series if s.first_order and s.curves(goal.keys)]
    ranked = sorted(candidates, key=lambda s: sign * goal.final(s.runs).median)
    if not ranked or not math.isfinite(goal.final(ranked[0].runs).median):
        return None
    best = ranked[0]
    baselines = _baselines(best, goal)
    return TimeToTarget(
        goal=goal,
        baseline=best.label,
        target=Spread.of(run.target for seed, run in baselines.items() if seed is not None),
        outcomes={s.label: _outcome(s, goal, baselines) for s in comparison.series},
        spacing=_spacing(comparison, goal),
    )


@dataclass(frozen=True)
class _Baseline:
    """The baseline on one seed: its final value, and its seconds to that and in all."""

    target: float
    seconds: float
    budget: float


def _baselines(best: Series, goal: Goal) -> dict[int | None, _Baseline]:
    """The baseline by seed; under ``None`` its medians, for seeds that it did not run."""
    baselines: dict[int | None, _Baseline] = {}
    for run in best.runs:
        curve, target = goal.curve(run), goal.ended(run)
        if curve is None or not math.isfinite(target):
            continue
        index = goal.first_reach(curve, target)
        seconds = float(curve.seconds[-1 if index is None else index])
        baselines[run.seed] = _Baseline(target, seconds, float(curve.seconds[-1]))
    own = list(baselines.values())
    baselines[None] = _Baseline(
        Spread.of(b.target for b in own).median,
        Spread.of(b.seconds for b in own).median,
        Spread.of(b.budget for b in own).median,
    )
    return baselines


def _outcome(
    series: Series, goal: Goal, baselines: Mapping[int | None, _Baseline]
) -> TargetOutcome:
    costs: dict[Axis, list[float]] = {axis: [] for axis in AXES}
    ratios, fractions = [], []
    for run in series.runs:
        baseline = baselines.get(run.seed, baselines[None])
        cost = _cost(run, goal, baseline.target)
        for axis in AXES:
            costs[axis].append(cost[axis])
        ratios.append(_divide(cost["seconds"], baseline.seconds))
        fractions.append(_divide(cost["seconds"], baseline.budget))
    return TargetOutcome(
        reached=sum(math.isfinite(value) for value in costs["seconds"]),
        runs=len(series.runs),
        cost={axis: Spread.of(values) for axis, values in costs.items()},
        ratio=Spread.of(ratios),
        budget_fraction=Spread.of(fractions),
    )


def _cost(run: Run, goal: Goal, target: float) -> dict[Axis, float]:
    curve = goal.curve(run)
    index = None if curve is None else goal.first_reach(curve, target)
    if curve is None or index is None:
        return dict.fromkeys(AXES, math.inf)
    return {axis: float(curve.along(axis)[index]) for axis in AXES}


def _spacing(comparison: Comparison, goal: Goal) -> Spread:
    curves = [curve for s in comparison.series for curve in s.curves(goal.keys)]
    return Spread.of(float(gap) for curve in curves for gap in np.diff(curve.seconds))


def _divide(a: float, b: float) -> float:
    # A target that already holds before the first step says nothing about speed.
    return a / b if b > 0 else math.nan
