"""Seconds of a training step, by the clock's buckets."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.engine.records.clock import BUCKETS, TRAINING
from tasks.engine.records.runs import Run
from tasks.engine.report.statistics import Spread


def step_cost(runs: Iterable[Run], buckets: Iterable[str] = TRAINING) -> Spread:
    """Seconds that a step spends in some buckets together, over seeds."""
    names = tuple(buckets)
    costs = (sum(r.buckets.get(b, 0.0) for b in names) / r.steps for r in runs if r.steps)
    return Spread.of(costs)


def untimed_cost(runs: Iterable[Run]) -> Spread:
    """Seconds a step spends outside of the training clock, over seeds."""
    return step_cost(runs, [b for b in BUCKETS if b not in TRAINING])
