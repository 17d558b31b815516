"""Ratios, intervals and the performance profile of the benchmark.

A ratio divides an optimizer's median seconds to the target by those of the best first-order
optimizer of the same track. A run that never reaches the target counts as
:data:`~scripts.ranking.outcomes.NEVER` budgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.ranking.outcomes import Outcome
from scripts.ranking.workloads import Target, Workload
from tasks.engine.records.metrics import Axis

#: Draws of the bootstrap over seeds, and the share of them that an interval holds.
DRAWS, LEVEL = 2000, 0.9
#: Ratios to the fastest that the profile is drawn over.
TAUS = np.linspace(1.0, 4.0, 121)


@dataclass(frozen=True)
class Entry:
    """What one optimizer did on one workload.

    Attributes:
        optim: its label.
        first_order: whether it can be the baseline.
        colour: in figures.
        settings: what was chosen, by dotted key.
        outcomes: the runs that count, one a seed.
    """

    optim: str
    first_order: bool
    colour: str
    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Row:
    """One optimizer's line of a workload's table; seconds are medians over seeds.

    Attributes:
        optim: its label.
        colour: in figures.
        settings: what was chosen, ``key=value`` with spaces between.
        seeds: runs that count.
        reached: those that reach the target.
        seconds: processor seconds to it.
        ratio: over those of the best first-order optimizer, with its interval.
        wall_ratio: the same by the training clock on the wall.
        metric: of the test split.
        test_at_target: mean test metric where the target is reached.
        test_at_best: where the validation loss is lowest.
        test_at_end: at the end.
        best: median of the lowest validation losses.
        no_worse: whether ``test_at_best`` is no worse than the baseline's by more than the
            standard error of their difference.
        step_seconds: processor seconds of a step.
    """

    optim: str
    colour: str
    settings: str
    seeds: int
    reached: int
    seconds: float
    ratio: float
    interval: tuple[float, float]
    wall_ratio: float
    metric: str
    test_at_target: float
    test_at_best: float
    test_at_end: float
    best: float
    no_worse: bool
    step_seconds: float

    @property
    def reaches(self) -> bool:
        """Whether more than half of its runs reach the target."""
        return 2 * self.reached > self.seeds


@dataclass(frozen=True)
class Standing:
    """A workload's table.

    Attributes:
        baseline: the first-order optimizer with the fewest seconds.
        rows: by rising seconds.
        entries: whose runs are at hand, in the order of the rows; none of a table that was kept.
    """

    workload: Workload
    target: Target
    baseline: str
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...] = ()

    def row(self, optim: str) -> Row | None:
        """An optimizer's row."""
        return next((row for row in self.rows if row.optim == optim), None)


def standing(workload: Workload, entries: Sequence[Entry]) -> Standing | None:
    """A workload's table; ``None`` without a target or a first-order optimizer."""
    target = workload.target
    rivals = [entry for entry in entries if entry.first_order]
    if target is None or not rivals:
        return None

    def times(entry: Entry, axis: Axis = "cpu_seconds") -> NDArray[np.float64]:
        found = [one.time_to(target.loss, workload.seconds, axis) for one in entry.outcomes]
        return np.array(found, dtype=np.float64)

    baseline = min(rivals, key=lambda entry: (np.median(times(entry)), _best(entry)))
    rows = []
    for entry in entries:
        own, theirs = times(entry), times(baseline)
        walls = [np.median(times(one, "seconds")) for one in (entry, baseline)]
        rows.append(
            Row(
                optim=entry.optim,
                colour=entry.colour,
                settings=" ".join(f"{key}={value}" for key, value in entry.settings.items()),
                seeds=len(entry.outcomes),
                reached=sum(one.reach(target.loss) is not None for one in entry.outcomes),
                seconds=float(np.median(own)),
                ratio=float(np.median(own) / np.median(theirs)),
                interval=(1.0, 1.0) if entry is baseline else interval(own, theirs),
                wall_ratio=float(walls[0] / walls[1]),
                metric=entry.outcomes[0].run.metric,
                test_at_target=_mean(one.test_at(target.loss) for one in entry.outcomes),
                test_at_best=_mean(one.test_at() for one in entry.outcomes),
                test_at_end=_mean(one.test.final for one in entry.outcomes),
                best=_best(entry),
                no_worse=no_worse(entry.outcomes, baseline.outcomes),
                step_seconds=_mean(one.step_seconds for one in entry.outcomes),
            )
        )
    rows.sort(key=lambda row: (row.seconds, row.best))
    order = [row.optim for row in rows]
    ranked = sorted(entries, key=lambda entry: order.index(entry.optim))
    return Standing(workload, target, baseline.optim, tuple(rows), tuple(ranked))


def interval(own: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Where the ratio of medians lies when the seeds of both are resampled."""
    draw = np.random.default_rng(0)
    ratios = np.median(draw.choice(own, (DRAWS, len(own))), axis=1) / np.median(
        draw.choice(theirs, (DRAWS, len(theirs))), axis=1
    )
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def no_worse(own: Sequence[Outcome], theirs: Sequence[Outcome]) -> bool:
    """Whether the test metric at the lowest validation loss is as good as the baseline's."""
    a, b = (np.array([one.test_at() for one in outcomes]) for outcomes in (own, theirs))
    gain = np.mean(a) - np.mean(b)
    if not own[0].run.higher_is_better:
        gain = -gain
    return bool(gain >= -math.hypot(_error(a), _error(b)))


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of ratios; NaN of none."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def profile(standings: Sequence[Standing], optim: str) -> NDArray[np.float64]:
    """Share of workloads on which an optimizer takes at most tau times the fastest one's seconds.

    Dolan and Moré (2002), over :data:`TAUS`. A workload whose target it never reaches, or on which
    it was not run, does not count for it at any tau.
    """
    ratios = np.full(len(standings), math.inf)
    for index, one in enumerate(standings):
        row = one.row(optim)
        if row is not None and row.reaches:
            ratios[index] = row.seconds / min(other.seconds for other in one.rows)
    within = ratios[None, :] <= TAUS[:, None]
    return np.asarray(within.mean(axis=1), dtype=np.float64)


def area(shares: NDArray[np.float64]) -> float:
    """Mean height of a profile: 1 for the fastest everywhere."""
    return float(np.trapezoid(shares, TAUS) / (TAUS[-1] - TAUS[0]))


def optims(standings: Sequence[Standing]) -> list[str]:
    """Everybody, by falling area of the profile."""
    names = {row.optim for one in standings for row in one.rows}
    return sorted(names, key=lambda name: (-area(profile(standings, name)), name))


def _best(entry: Entry) -> float:
    return float(np.median([one.best for one in entry.outcomes]))


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return float(np.mean(kept)) if kept else math.nan


def _error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
