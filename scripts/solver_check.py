"""How much a faster solver than the paper's changes: whole runs, and gradients when trained."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.engine.config.identity import config_hash
from tasks.engine.records.metrics import Key
from tasks.engine.records.results import write_file
from tasks.engine.records.runs import Run
from tasks.engine.report.formatting import metric_style, number
from tasks.engine.report.markdown import markdown_table
from tasks.engine.report.reload import training_gradient
from tasks.engine.report.summary import as_csv

_LOSS: Key = ("train", "loss")
_HEADS = (
    "task|optimizer|seed|epochs|largest difference of the training loss|train loss|faster solver"
    "|test metric|faster solver"
)
_NOTE = (
    "The paper's solver and a faster one; all else is the same. Losses are compared after equal "
    "steps, at every evaluation that both runs have, as a share of the paper's solver's; train "
    "loss and test metric are those of the last of them."
)

_SAMPLES = 32
_PLAIN = {"compile": False}
_PAPERS = {
    **_PLAIN,
    "method": "dopri5",
    "gradient": "adjoint",
    "steps": None,
    "warm_start": False,
}
_TIGHT = {**_PAPERS, "gradient": "direct", "rtol": 1e-8, "atol": 1e-8}
_ERROR_HEADS = "task|optimizer|seed|epochs|error of its own solver|of the paper's"
_ERROR_NOTE = (
    f"The training gradient on {_SAMPLES} samples with the weights at the end of the run, relative "
    "to dopri5 at 1e-8 in float64: by the solver that the run was trained with, and by dopri5 "
    "with the adjoint at the task's tolerances."
)


def solver_pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs with an adjoint solve, as the paper's, each with its twin that differs in the solver.

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
    rows = [_row(slow, fast) for slow, fast in pairs]
    return f"{markdown_table(_HEADS.split('|'), rows)}\n\n{_NOTE}\n"


def error_markdown(runs: Sequence[Run], file: Path) -> str:
    """Errors of the gradient at the end of training, by the run's own solver and by the paper's.

    Args:
        runs: those without a checkpoint, or with the paper's solver, are left aside.
        file: where errors that were measured are kept.

    Returns:
        Markdown; empty where no run is left.
    """
    kept: dict[str, dict[str, str]] = {}
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as lines:
            kept = {row["run"]: dict(row) for row in csv.DictReader(lines)}
    rows = []
    for run in runs:
        if _is_adjoint(run) or not (run.path / "checkpoint.pt").is_file():
            continue
        name = f"{run.task}/{run.optim}/{run.path.name}"
        known = kept.get(name, {})  # of a run that may have gone on since
        same = known.get("epochs") == _epochs(run)
        rows.append(known if same else {"run": name, **_errors(run)})
    if not rows:
        return ""
    write_file(file, as_csv(rows).encode())
    cells = [list(row.values())[1:] for row in rows]
    return f"{markdown_table(_ERROR_HEADS.split('|'), cells)}\n\n{_ERROR_NOTE}\n"


def _errors(run: Run) -> dict[str, str]:
    exact = training_gradient(run, _SAMPLES, solver=_TIGHT, dtype="float64")
    own, papers = (training_gradient(run, _SAMPLES, solver=s) for s in (_PLAIN, _PAPERS))
    return {
        "task": run.task,
        "optimizer": _optimizer(run),
        "seed": str(run.seed),
        "epochs": _epochs(run),
        "own": number(float((own - exact).norm() / exact.norm())),
        "papers": number(float((papers - exact).norm() / exact.norm())),
    }


def _epochs(run: Run) -> str:
    return number(run.steps / max(1, run.steps_per_epoch))


def _row(slow: Run, fast: Run) -> list[str]:
    steps, losses = _shared(slow, fast, _LOSS)
    _, metrics = _shared(slow, fast, ("test", slow.metric))
    apart = np.abs(losses[1] / losses[0] - 1).max()
    show = metric_style(slow.metric)
    return [
        slow.task,
        _optimizer(slow),
        str(slow.seed),
        number(float(steps[-1]) / max(1, slow.steps_per_epoch)),
        f"{100 * apart:.2g}%",
        *(number(float(values[-1])) for values in losses),
        *(show(float(values[-1])) for values in metrics),
    ]


def _shared(slow: Run, fast: Run, key: Key) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps at which both measured a metric, shape (K,), and its values, shape (2, K)."""
    one, two = slow.curves[key], fast.curves[key]
    steps, mine, theirs = np.intersect1d(one.steps, two.steps, return_indices=True)
    return steps, np.stack([one.values[mine], two.values[theirs]])


def _optimizer(run: Run) -> str:
    rule = run.config["optim"].get("rule")
    return run.optim if rule is None else f"{run.optim} (rule={rule})"


def _is_adjoint(run: Run) -> bool:
    return str(run.config["solver"].get("gradient")).startswith("adjoint")


def _apart_from_solver(run: Run) -> str:
    """What twins share: the data, the network, the optimizer, the seed; not how long they train."""
    names = ("task", "model", "optim", "schedule", "dtype")
    shared = {name: run.config.get(name, {}) for name in names}
    alike = config_hash({**shared, "solver": {}, "train": {}})
    return f"{alike} {run.seed} {run.provenance} {run.environment.get('device_name')}"
