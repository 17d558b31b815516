"""Field evaluations of a training step, forward and backward apart, over a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.engine.records.runs import Run
from tasks.engine.report.formatting import number


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of a step, averaged between two logged rows.

    Attributes:
        steps: optimizer steps at the end of each stretch, shape (K,).
        parts: forward and backward evaluations, shape (2, K).
    """

    steps: NDArray[np.float64]
    parts: NDArray[np.float64]


def per_step(run: Run) -> Evaluations:
    """Differences of a run's counters between the steps that it logged; empty without any."""
    counts: dict[float, tuple[float, float]] = {0.0: (0.0, 0.0)}
    for curve in run.curves.values():
        rows = zip(curve.steps, curve.nfe_forward, curve.nfe_backward, strict=True)
        counts |= {float(step): (forward, backward) for step, forward, backward in rows}
    steps = np.array(sorted(counts), dtype=np.float64)
    totals = np.array([counts[step] for step in steps.tolist()], dtype=np.float64)
    made = np.diff(steps)[:, None]
    return Evaluations(steps[1:], (np.diff(totals, axis=0) / made).T)


def late_evaluations(runs: Iterable[Run]) -> str:
    """Evaluations of a step in the last tenth of training, forward/backward, medians over runs."""
    late = []
    for run in runs:
        parts = per_step(run).parts
        if parts.shape[1]:
            late.append(parts[:, -max(1, parts.shape[1] // 10) :].mean(axis=1))
    return "/".join(number(float(part)) for part in np.median(late, axis=0)) if late else ""
