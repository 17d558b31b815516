"""Runs with the paper's solver, set beside the same runs with a faster one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.engine.records.metrics import Key
from tasks.engine.records.runs import Run
from tasks.engine.report.formatting import metric_style, number

_LOSS: Key = ("train", "loss")
_HEADS = (
    "task|optimizer|seed|epochs|largest difference of the training loss|train loss|faster solver"
    "|test metric|faster solver|ms a step|faster solver"
)
_NOTE = (
    "The paper's solver and a faster one; all else is the same. Losses are compared after equal "
    "steps, at every evaluation that both runs have, as a share of the paper's solver's; train "
    "loss and test metric are those of the last of them."
)


def solver_pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs with an adjoint solve, as the paper's, each with a twin that differs in its solver.

    Args:
        runs: of any tasks; those without a twin are left aside.
    """
    fast = {_apart_from_solver(run): run for run in runs if not _is_adjoint(run)}
    pairs = ((run, fast.get(_apart_from_solver(run))) for run in runs if _is_adjoint(run))
    return [(run, twin) for run, twin in pairs if twin is not None]


def solver_markdown(pairs: Sequence[tuple[Run, Run]]) -> str:
    """A row a pair: how far the curves are apart, and what a step costs.

    Args:
        pairs: as :func:`solver_pairs` finds them.
    """
    heads = _HEADS.split("|")
    lines = [heads, ["---"] * len(heads), *(_row(slow, fast) for slow, fast in pairs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_NOTE}\n"


def _row(slow: Run, fast: Run) -> list[str]:
    steps, losses = _shared(slow, fast, _LOSS)
    _, metrics = _shared(slow, fast, ("test", slow.metric))
    apart = np.abs(losses[1] / losses[0] - 1).max()
    show = metric_style(slow.metric)
    return [
        slow.task,
        slow.optim,
        str(slow.seed),
        number(float(steps[-1]) / max(1, slow.steps_per_epoch)),
        f"{100 * apart:.2g}%",
        *(number(float(values[-1])) for values in losses),
        *(show(float(values[-1])) for values in metrics),
        *(number(1000 * run.seconds / run.steps) for run in (slow, fast)),
    ]


def _shared(slow: Run, fast: Run, key: Key) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps at which both measured a metric, shape (K,), and its values, shape (2, K)."""
    one, two = slow.curves[key], fast.curves[key]
    steps, mine, theirs = np.intersect1d(one.steps, two.steps, return_indices=True)
    return steps, np.stack([one.values[mine], two.values[theirs]])


def _is_adjoint(run: Run) -> bool:
    return str(run.config["solver"].get("gradient")).startswith("adjoint")


def _apart_from_solver(run: Run) -> str:
    """What twins share: the machine, the data, the network, the optimizer, the seed."""
    parts = {name: run.config.get(name) for name in ("task", "model", "optim", "schedule", "dtype")}
    where = run.environment.get("device_name"), run.provenance
    return json.dumps([parts, run.seed, where], sort_keys=True, default=str)
