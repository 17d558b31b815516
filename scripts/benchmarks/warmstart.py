"""Evaluations of the field with and without a warm start: counts, not seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from scripts.benchmarks.tables import Cell, present
from scripts.benchmarks.workloads import Weights, Workload, load_with_ode, ode_blocks, trained
from snopt import ODEBlock
from tasks.engine.training.batches import BatchSampler

STEPS = 5
"""Training steps that are counted, after one that leaves a step size behind."""

HEADINGS = (
    "task", "solves a step", "forward, cold", "forward, warm", "fewer",
    "backward, cold", "backward, warm", "fewer",
)  # fmt: skip


def run(tasks: Sequence[str], steps: int, out: Console, folder: Path | None) -> None:
    """Count on each net, at weights after ``steps`` training steps."""
    rows = []
    for task in tasks:
        workload = load_with_ode(task)
        rows.append(row(workload, trained(workload, steps)))
    title = (
        f"Field evaluations of a solve, dopri5 with the adjoint at 1e-3: mean over {STEPS} "
        f"training steps that follow the first {steps}"
    )
    present(title, HEADINGS, rows, out, folder, "warmstart")


def row(workload: Workload, weights: Weights) -> list[Cell]:
    """One task's line: evaluations for each solve."""
    cold, solves = evaluations(workload, weights, warm_start=False)
    warm, _ = evaluations(workload, weights, warm_start=True)
    cells: list[Cell] = [workload.name, solves / STEPS]
    for before, after in zip(cold, warm, strict=True):
        cells += [before / solves, after / solves, f"{1 - after / before:.0%}"]
    return cells


def evaluations(
    workload: Workload, weights: Weights, *, warm_start: bool
) -> tuple[tuple[int, int], int]:
    """Evaluations forward and backward over some training steps, and the number of solves."""
    solver = {
        "method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "gradient": "adjoint",
        "warm_start": warm_start,
    }  # fmt: skip
    model = workload.model(weights, solver)
    blocks = ode_blocks(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = BatchSampler(workload.splits.train, workload.task.batch_size, 1)
    calls: list[ODEBlock] = []
    for block in blocks:
        block.register_forward_hook(lambda block, *_: calls.append(block))
    counted = 0, 0
    for number in range(1 + STEPS):
        optimizer.zero_grad()
        workload.loss(model, order.next()).backward()
        optimizer.step()
        if number == 0:
            calls.clear()
            counted = _counted(blocks)
    forward, backward = _counted(blocks)
    return (forward - counted[0], backward - counted[1]), len(calls)


def _counted(blocks: Sequence[ODEBlock]) -> tuple[int, int]:
    return sum(b.nfe_forward for b in blocks), sum(b.nfe_backward for b in blocks)
