"""A run's model again, from what the run left: for pictures and for what is measured afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import snopt
from snopt.ode.block import blocks
from tasks.common.seeding import stream
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import build_model, build_task, load_splits
from tasks.engine.records import checkpoint
from tasks.engine.records.runs import Run
from tasks.engine.training.parallel import World
from tasks.engine.training.probe import DrawnIn
from tasks.task import Batch, Splits, Task


@dataclass(frozen=True)
class Rebuilt:
    """A run's task, data and model, on the CPU."""

    task: Task
    splits: Splits
    model: nn.Module
    seed: int
    drawn: torch.dtype
    """Of the run, whose noise it was drawn in."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """The model's outputs for a batch, as in an evaluation."""
        noise = stream(self.seed, "noise", batch[0].device)
        dtype = next(self.model.parameters()).dtype
        with nullcontext() if dtype is self.drawn else DrawnIn(self.drawn):
            return self.task.forward(self.model, batch, noise)


def rebuild(
    run: Run,
    *,
    solver: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    trained: bool = True,
    seed: int | None = None,
) -> Rebuilt:
    """Load a run's data and make its model.

    Args:
        run: a run whose folder still holds its configuration and checkpoint.
        solver: settings that replace the run's own, in ``conf/solver``'s words.
        dtype: ``float32`` or ``float64``; the run's own by default.
        trained: load the weights of the checkpoint; otherwise the model is as it was at the start.
        seed: of the untrained weights; the run's own by default.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ResultsError: the checkpoint is damaged.
    """
    config = {**run.config, "device": "cpu", "horizon": {}}
    config["solver"] = {**run.config["solver"], **(solver or {})}
    config["dtype"] = dtype or run.config["dtype"]
    config["seed"] = run.seed if seed is None else seed
    settings = Settings.read(config)
    world = World.join("cpu")
    task = build_task(settings)
    splits = load_splits(settings, task, world)
    model = build_model(settings, task, world)
    if trained:
        state = checkpoint.load(run.path / "checkpoint.pt")
        if state is None:
            raise FileNotFoundError(f"{run.path} has no checkpoint.pt")
        model.load_state_dict(state.get("averaged", state["model"]))
        for name, block in blocks(model).items():  # where a horizon has put its end
            block.t_span = state["solver"][name]["t_span"]
    return Rebuilt(task, splits, model, run.seed, getattr(torch, run.config["dtype"]))


def evaluations(run: Run, tolerance: float, samples: int) -> tuple[int, int]:
    """Field evaluations of one training batch with the run's final weights, forward and backward.

    The solver is dopri5 with the adjoint, at rtol = atol = ``tolerance``, in float64.

    Args:
        run: a run that has left its checkpoint.
        tolerance: of both solves.
        samples: the first so many training samples make the batch; error control sees them all.

    Returns:
        Forward and backward; -1 and -1 where a solve failed.
    """
    solver = {
        "method": "dopri5",
        "gradient": "adjoint",
        "rtol": tolerance,
        "atol": tolerance,
        "steps": None,
        "options": {},
    }
    made = rebuild(run, solver=solver, dtype="float64")
    batch = tuple(tensor[:samples] for tensor in made.splits.train)
    try:
        made.task.loss(made.forward(batch), batch).backward()
    except snopt.SolverError:
        return -1, -1
    found = blocks(made.model).values()
    return sum(b.nfe_forward for b in found), sum(b.nfe_backward for b in found)


def training_gradient(
    run: Run, samples: int, *, solver: Mapping[str, Any] | None = None, dtype: str | None = None
) -> torch.Tensor:
    """The gradient of the training loss with the run's final weights, in float64.

    Args:
        run: a run that has left its checkpoint.
        samples: the first so many training samples make the batch.
        solver: as in :func:`rebuild`.
        dtype: that it is computed in, as in :func:`rebuild`.

    Returns:
        All parameters' gradients, one after the other, shape (parameters,).
    """
    made = rebuild(run, solver=solver, dtype=dtype)
    batch = tuple(tensor[:samples] for tensor in made.splits.train)
    made.task.loss(made.forward(batch), batch).backward()
    found = [p.grad for p in made.model.parameters() if p.grad is not None]
    return torch.cat([grad.double().flatten() for grad in found])
