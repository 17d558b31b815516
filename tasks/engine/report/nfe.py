"""Field evaluations of a training step, forward and backward apart, over a run."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.engine.records.runs import Run


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
    """Read a run's counters from the rows it logged; empty where there are fewer than two."""
    counts: dict[int, tuple[int, int]] = {0: (0, 0)}
    for line in (run.path / "metrics.jsonl").read_bytes().splitlines():
        try:
            row = json.loads(line)
            counts[int(row["step"])] = (int(row["nfe_forward"]), int(row["nfe_backward"]))
        except (ValueError, KeyError, TypeError):
            continue  # read_run has remarked on damaged lines
    steps = np.array(sorted(counts), dtype=np.float64)
    totals = np.array([counts[int(step)] for step in steps], dtype=np.float64)
    made = np.diff(steps)[:, None]
    return Evaluations(steps[1:], (np.diff(totals, axis=0) / made).T)
