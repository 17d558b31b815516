"""What SNOpt adds to a step: ordinary steps, refresh steps, their average, and their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scripts.benchmarks.memory import peak_bytes
from scripts.benchmarks.tables import Cell, present, range_text
from scripts.benchmarks.timing import interleave
from scripts.benchmarks.workloads import Weights, Workload, load, nfe, trained, training_step
from snopt import SNOpt
from tasks.series import SeriesClassification

RULES: Mapping[str, dict[str, Any]] = {
    "the default": {},
    "paper": {"rule": "paper"},
    "adam, curvature": {"rule": "adam", "basis": "curvature", "refresh_every": 20},
    "kfac": {"rule": "kfac"},
}
"""What is measured with every solver, by the name of its line."""

VARIANTS: Mapping[str, dict[str, Any]] = {
    **RULES,
    "paper, 32 samples": {**RULES["paper"], "curvature_samples": 32},
    "adam, curvature, 32 samples": {**RULES["adam, curvature"], "curvature_samples": 32},
    "gauss_newton": {"rule": "gauss_newton"},
}
"""What is measured on a task's own solver; on the paper's, whose steps cost more, the rules."""

STILL = 1e-12
"""A learning rate so small that all steps of all optimizers happen at the same weights."""

NEVER = 10**9


def run(tasks: Sequence[str], rounds: int, steps: int, out: Console, folder: Path | None) -> None:
    """Measure time for each net and rule, then memory against the number of solver steps."""
    times: list[list[Cell]] = []
    for task in tasks:
        for solver, variants in (("own", VARIANTS), ("paper", RULES)):
            workload = load(task, *([] if solver == "own" else [f"solver={solver}"]))
            weights = trained(workload, steps)
            known = measurable(workload, variants)
            times.extend(time_rows(workload, weights, rounds, solver, known))
    headings = (
        "net", "solver", "SNOpt", "s SGD", "ordinary / SGD", "refresh / SGD", "refresh / ordinary",
        "period", "average / SGD", "NFE f/b",
    )  # fmt: skip
    title = f"SNOpt's step over SGD's, after {steps} training steps (medians, quartiles)"
    present(title, headings, times, out, folder, "snopt-time")
    memory: list[list[Cell]] = []
    for task in tasks:
        memory.extend(memory_rows(task))
    present(
        "Peak MB of a step beyond model and batch, by Euler steps of each solve (adjoint)",
        ("net", "batch", "solver steps", "SGD", "paper ordinary", "paper refresh", "refresh - SGD"),
        memory,
        out,
        folder,
        "snopt-memory",
    )


def time_rows(
    workload: Workload,
    weights: Weights,
    rounds: int,
    solver: str,
    variants: Mapping[str, dict[str, Any]],
) -> list[list[Cell]]:
    """One net's lines with one solver, all variants side by side."""
    calls: dict[str, Callable[[], object]] = {"sgd": sgd_step(workload, weights)}
    for name, settings in variants.items():
        if period_of(workload, settings) == 1:  # it knows no other steps
            calls[f"{name} refresh"] = snopt_step(workload, weights, settings)
            continue
        never, always = ({**settings, "refresh_every": every} for every in (NEVER, 1))
        calls[f"{name} ordinary"] = snopt_step(workload, weights, never)
        calls[f"{name} refresh"] = snopt_step(workload, weights, always)
    times = interleave(calls, rounds)
    rows: list[list[Cell]] = []
    for name, settings in variants.items():
        ordinary, refresh = f"{name} ordinary", f"{name} refresh"
        period = period_of(workload, settings)
        average = once = times.ratio(refresh, "sgd")[0]
        between = beside = ""
        if period > 1:
            between = range_text(times.ratio(ordinary, "sgd"))
            beside = range_text(times.ratio(refresh, ordinary))
            average = ((period - 1) * times.ratio(ordinary, "sgd")[0] + once) / period
        rows.append(
            [
                workload.name,
                solver,
                name,
                times.seconds("sgd"),
                between,
                range_text(times.ratio(refresh, "sgd")),
                beside,
                period,
                f"{average:.3f}",
                evaluations(workload, weights),
            ]
        )
    return rows


def measurable(
    workload: Workload, variants: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The variants without Gauss-Newton where the loss has no residuals, as that of a density."""
    residuals = workload.task.likelihood is not None
    return {
        name: settings
        for name, settings in variants.items()
        if residuals or settings.get("rule") != "gauss_newton"
    }


def period_of(workload: Workload, settings: Mapping[str, Any]) -> int:
    """The variant's ``refresh_every``, its rule's default where it sets none."""
    made = SNOpt(workload.model(), lr=STILL, **settings)
    return made.method.refresh_every


def evaluations(workload: Workload, weights: Weights) -> str:
    """Field evaluations of one step."""
    model = workload.model(weights)
    workload.loss(model).backward()
    forward, backward = nfe(model)
    return f"{forward}/{backward}"


def sgd_step(
    workload: Workload, weights: Weights | None, solver: dict[str, Any] | None = None
) -> Callable[[], object]:
    """A step of SGD with momentum."""
    model = workload.model(weights, solver)
    optimizer = torch.optim.SGD(model.parameters(), lr=STILL, momentum=0.9)
    return lambda: training_step(workload, model, optimizer)


def snopt_step(
    workload: Workload,
    weights: Weights | None,
    settings: Mapping[str, Any],
    solver: dict[str, Any] | None = None,
) -> Callable[[], object]:
    """A step of SNOpt with these settings; its first step, a refresh, is behind it."""
    model = workload.model(weights, solver)
    optimizer = SNOpt(model, lr=STILL, **settings)
    training_step(workload, model, optimizer)
    return lambda: training_step(workload, model, optimizer)


def first_points(workload: Workload, points: int = 3) -> Workload:
    """The workload with series cut to their first points: few solves, so that each can be long."""
    if not isinstance(workload.task, SeriesClassification):
        return workload
    inputs, observed, last, labels = workload.batch
    cut = (inputs[:, :points], observed[:, :points], last.clamp(max=points - 1), labels)
    return replace(workload, batch=cut)


def memory_rows(task: str, counts: Sequence[int] = (10, 100, 1000)) -> list[list[Cell]]:
    """Peak memory of steps of the paper's rule, which listens to solves, by their solver steps."""
    workload = first_points(load(task, batch_size=8))
    rows: list[list[Cell]] = []
    for count in counts:
        solver = {"method": "euler", "steps": count, "gradient": "adjoint"}
        calls = (
            sgd_step(workload, None, solver),
            snopt_step(workload, None, {**RULES["paper"], "refresh_every": NEVER}, solver),
            snopt_step(workload, None, {**RULES["paper"], "refresh_every": 1}, solver),
        )
        sgd, ordinary, refresh = (peak_bytes(call) / 1e6 for call in calls)
        rows.append([task, len(workload.batch[0]), count, sgd, ordinary, refresh, refresh - sgd])
    return rows
