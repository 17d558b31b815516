"""Which solver a task's default should be: candidates beside the paper's, in time and error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from scripts.benchmarks.gradients import gradient_errors, tight, tight_gradient
from scripts.benchmarks.tables import Cell, present, range_text
from scripts.benchmarks.timing import interleave
from scripts.benchmarks.workloads import Workload, load_with_ode, nfe, trained, training_step
from snopt import SolverError
from tasks.common.checks import ConfigError
from tasks.data.errors import DataError

PAPER = "dopri5, adjoint"
"""The paper's solver at the task's own tolerances: the yardstick of time and of error."""

HEADINGS = ("solver", "NFE f/b", "s/step", "over the paper's", "error", "choice")


def candidates(rtol: float, atol: float) -> dict[str, dict[str, Any]]:
    """Solver settings by name; tight tolerances ask for more fixed steps."""
    adaptive = {"method": "dopri5", "rtol": rtol, "atol": atol}
    found: dict[str, dict[str, Any]] = {
        PAPER: {**adaptive, "gradient": "adjoint"},
        "dopri5, adjoint-seminorm": {**adaptive, "gradient": "adjoint-seminorm"},
        "dopri5, checkpoint": {**adaptive, "gradient": "checkpoint"},
        "dopri5, direct": {**adaptive, "gradient": "direct"},
        "dopri5, checkpoint, warm start": {
            **adaptive,
            "gradient": "checkpoint",
            "warm_start": True,
        },
        "dopri5, direct, warm start": {**adaptive, "gradient": "direct", "warm_start": True},
    }
    tight = rtol < 1e-4
    for method, counts in (
        ("dopri5", (1, 2, 4, 8) if tight else (1,)),
        ("rk4", (2, 4, 8, 16) if tight else (1, 2, 3)),
    ):
        for count in counts:
            name = f"{method}, {count} step{'s' if count > 1 else ''}, direct"
            found[name] = {"method": method, "steps": count, "gradient": "direct"}
    return found


def run(
    tasks: Sequence[str],
    rounds: int,
    steps: int,
    batch_size: int | None,
    out: Console,
    folder: Path | None,
) -> None:
    """Measure every candidate on each task, at weights after ``steps`` training steps."""
    for task in tasks:
        try:
            workload = load_with_ode(task, batch_size)
        except (DataError, ConfigError) as error:
            out.print(f"{task} left out: {error}", markup=False)
            continue
        title = (
            f"{task}, batch {len(workload.batch[0])}, after {steps} training steps "
            f"({workload.task.provenance}): one SGD step; error relative to a float64 solve at "
            f"{reference_tolerance(workload):g}"
        )
        present(title, HEADINGS, rows(workload, rounds, steps), out, folder, f"solvers-{task}")


def reference_tolerance(workload: Workload) -> float:
    """Four digits more than the task's own, as far as its reference can go."""
    return max(tight(workload), 1e-4 * float(workload.settings.config["solver"]["rtol"]))


def rows(workload: Workload, rounds: int, steps: int) -> list[list[Cell]]:
    """One line a candidate; the fastest whose error is no larger than the paper's is the choice."""
    own = workload.settings.config["solver"]
    enough = 4 if float(own["rtol"]) < 1e-4 else 1
    training = {"method": "dopri5", "steps": enough, "gradient": "direct"}
    weights = trained(workload, steps, training)
    reference = tight_gradient(workload, weights, reference_tolerance(workload))
    calls: dict[str, Callable[[], object]] = {}
    counts: dict[str, tuple[int, int]] = {}
    errors: dict[str, float] = {}
    for name, solver in candidates(float(own["rtol"]), float(own["atol"])).items():
        model = workload.model(weights, solver)
        try:
            call = _step(workload, model)
            call()  # for a warm start to start from
            before = nfe(model)
            errors[name] = gradient_errors(workload, model, reference)[0]
            after = nfe(model)
        except SolverError:
            errors[name] = math.nan
            continue
        calls[name], counts[name] = call, (after[0] - before[0], after[1] - before[1])
    times = interleave(calls, rounds, warm_up=0)
    choice = choose({name: times.seconds(name) for name in calls}, errors)
    lines: list[list[Cell]] = []
    for name, error in errors.items():
        if name not in calls:
            lines.append([name, None, None, "failed", None, ""])
            continue
        ratio = range_text(times.ratio(name, PAPER))
        evaluations = "{}/{}".format(*counts[name])
        lines.append(
            [name, evaluations, times.seconds(name), ratio, error, "x" if name == choice else ""]
        )
    return lines


def choose(seconds: Mapping[str, float], errors: Mapping[str, float]) -> str:
    """The fastest whose error is no larger than the paper's own.

    Where several are within a tenth of the fastest, the one with the smallest error.
    """
    good = [name for name in seconds if errors[name] <= errors[PAPER]]
    limit = 1.1 * min(seconds[name] for name in good)
    return min((name for name in good if seconds[name] <= limit), key=lambda name: errors[name])


def _step(workload: Workload, model: nn.Module) -> Callable[[], object]:
    # A rate of zero: every round makes the same step.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return lambda: training_step(workload, model, optimizer)
