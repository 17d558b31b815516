"""Seconds of a training step, over the bare field work at the same evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from scripts.benchmarks.bare import bare_work, field_call, solves
from scripts.benchmarks.tables import Cell, present, range_text
from scripts.benchmarks.timing import interleave
from scripts.benchmarks.workloads import Workload, load_with_ode, ode_blocks, training_step
from tasks.common.checks import ConfigError
from tasks.data.errors import DataError
from tasks.engine.config.composing import CONF

HEADINGS = (
    "task", "batch", "gradient", "NFE f/b", "s/step", "s field", "step / field",
    "solves / field", "data",
)  # fmt: skip


def all_tasks() -> list[str]:
    """Every task that has a configuration."""
    return sorted(path.stem for path in (CONF / "task").glob("*.yaml"))


def run(tasks: Sequence[str], rounds: int, out: Console, folder: Path | None) -> None:
    """Measure one step of every task with SGD, at its first weights and its own solver."""
    rows = []
    for task in tasks:
        try:
            rows.append(row(load_with_ode(task), rounds))
        except (DataError, ConfigError) as error:
            out.print(f"{task} left out: {error}", markup=False)
    title = (
        "One SGD step, its solves with their gradients, and the same evaluations of the field "
        "alone (medians; ratio: quartiles)"
    )
    present(title, HEADINGS, rows, out, folder, "step")


def row(workload: Workload, rounds: int) -> list[Cell]:
    """One task's line."""
    model = workload.model()
    # A rate of zero: every round makes the same step.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    nfe = training_step(workload, model, optimizer)
    gradient = ode_blocks(model)[0].gradient
    field, inputs = field_call(workload, model)
    times = interleave(
        {
            "step": lambda: training_step(workload, model, optimizer),
            "solves": solves(workload, model),
            "field": bare_work(field, inputs, nfe, gradient),
        },
        rounds,
    )
    return [
        workload.name,
        len(workload.batch[0]),
        gradient,
        f"{nfe[0]}/{nfe[1]}",
        times.seconds("step"),
        times.seconds("field"),
        range_text(times.ratio("step", "field")),
        range_text(times.ratio("solves", "field")),
        workload.task.provenance,
    ]
