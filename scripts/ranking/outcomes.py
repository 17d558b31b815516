"""What one run of a workload came to: when it reached the target, and what it measured then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.engine.records.metrics import Axis, Curve
from tasks.engine.records.runs import Run, read_run

#: Budgets that a target counts as taking which is never reached.
NEVER = 4.0


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        run: as read from its folder.
        loss: the validation loss, by step.
        test: the test split's headline metric, by step.
    """

    run: Run
    loss: Curve
    test: Curve

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """From the run's folder.

        Raises:
            UnreadableRunError: it is no finished run.
        """
        run = read_run(folder)
        empty = Curve(*(np.empty(0) for _ in range(6)))
        loss = run.curves.get(("valid", "loss"), empty)
        return cls(run, loss, run.curves.get(("test", run.metric), empty))

    @property
    def best(self) -> float:
        """The lowest validation loss; infinite where none was measured."""
        found = self.loss.finite().values
        return float(found.min()) if len(found) else math.inf

    def reach(self, target: float) -> int | None:
        """Which evaluation is the first at or below the target; ``None`` where none is."""
        (hits,) = np.nonzero(self.loss.values <= target)
        return int(hits[0]) if len(hits) else None

    def time_to(self, target: float, budget: float, axis: Axis = "cpu_seconds") -> float:
        """Seconds until the target; :data:`NEVER` budgets where it is not reached."""
        index = self.reach(target)
        return NEVER * budget if index is None else float(self.loss.along(axis)[index])

    def test_at(self, target: float | None = None) -> float:
        """The test metric where the target is reached, by default where the loss is lowest."""
        if target is None:
            index = int(np.nanargmin(self.loss.values)) if math.isfinite(self.best) else None
        else:
            index = self.reach(target)
        if index is None:
            return math.nan
        (places,) = np.nonzero(self.test.steps == self.loss.steps[index])
        return float(self.test.values[places[0]]) if len(places) else math.nan

    @property
    def step_seconds(self) -> float:
        """Processor seconds of a training step."""
        steps = self.loss.steps[-1] if len(self.loss.steps) else 0.0
        return float(self.loss.cpu_seconds[-1] / steps) if steps else math.nan


def merit(outcome: Outcome, target: float | None, budget: float) -> tuple[float, float]:
    """What settings are chosen by, the smaller the better.

    With a target the seconds to it come first, and the lowest validation loss decides between
    settings that never reach it; without one that loss alone counts.
    """
    seconds = 0.0 if target is None else outcome.time_to(target, budget)
    return seconds, outcome.best
