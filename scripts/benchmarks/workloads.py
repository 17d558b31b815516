"""The nets that are measured: a task's own model on one of its own batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from tasks.common.checks import ConfigError
from tasks.common.seeding import stream
from tasks.engine.config.composing import CONF, plain
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import build_model, build_task, default_data_root
from tasks.engine.training.batches import BatchSampler
from tasks.engine.training.parallel import World
from tasks.task import Batch, Splits, Task

NETS = ("mnist", "japanese_vowels")
"""The two nets that most bars are set on: the paper's image net, and an ODE-RNN."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A task, its data and one batch.

    Attributes:
        settings: the configuration it came from.
        batch: the first training batch of seed 0.
    """

    name: str
    settings: Settings
    task: Task
    splits: Splits
    batch: Batch
    device: torch.device

    def model(
        self, weights: Weights | None = None, solver: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """The task's model in training mode.

        Args:
            weights: a state dict to load; seed 0's initial weights by default.
            solver: keyword arguments of :class:`snopt.ODEBlock` that replace the configuration's.
        """
        config = self.settings.config
        if solver is not None:
            changed = {**config["solver"], "options": {}, **_flat(solver)}
            config = {**config, "solver": changed}
        model = build_model(Settings.read(config), self.task, World(0, 1, self.device))
        if weights is not None:
            model.load_state_dict(dict(weights))
        return model.train()

    def loss(self, model: nn.Module, batch: Batch | None = None) -> Tensor:
        """The training loss on a batch, the same noise every time."""
        batch = self.batch if batch is None else batch
        noise = stream(0, "noise", self.device)
        return self.task.loss(self.task.forward(model, batch, noise), batch)


def load(
    task: str, *overrides: str, batch_size: int | None = None, dtype: str = "float32"
) -> Workload:
    """A workload from its configuration.

    Args:
        task: a choice of ``task=``.
        overrides: further overrides of the command line.
        batch_size: samples of the batch; the task's own by default.
        dtype: ``float32`` or ``float64``.

    Raises:
        ConfigError: there is no such task.
        DataError: its data are not there.
    """
    size = [] if batch_size is None else [f"task.batch_size={batch_size}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=[f"task={task}", f"dtype={dtype}", *size, *overrides])
    settings = Settings.read(plain(config))
    world = World.join(settings.device)
    made = build_task(settings)
    root = settings.config["data"]["root"]
    folder = Path(root).expanduser() if root else default_data_root()
    splits = made.load(folder, 0, world.device, getattr(torch, dtype))
    batch = BatchSampler(splits.train, made.batch_size, 0).next()
    return Workload(task, settings, made, splits, batch, world.device)


def load_with_ode(task: str, batch_size: int | None = None) -> Workload:
    """A workload whose network has an ODE block, for what measures solves.

    Raises:
        ConfigError: there is no such task, or its network has no ODE block.
        DataError: its data are not there.
    """
    workload = load(task, batch_size=batch_size)
    if not ode_blocks(workload.model()):
        raise ConfigError(f"task {task}: its network has no ODE block, so no solve to measure")
    return workload


def trained(workload: Workload, steps: int, solver: Mapping[str, Any] | None = None) -> Weights:
    """Weights after some Adam steps; solvers and gradients behave differently at untrained ones.

    Args:
        workload: what to train.
        steps: how many.
        solver: as :meth:`Workload.model` takes it.
    """
    model = workload.model(solver=solver)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = BatchSampler(workload.splits.train, workload.task.batch_size, 0)
    for _ in range(steps):
        optimizer.zero_grad()
        workload.loss(model, order.next()).backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def ode_blocks(model: nn.Module) -> list[ODEBlock]:
    """The model's ODE blocks."""
    return [module for module in model.modules() if isinstance(module, ODEBlock)]


def nfe(model: nn.Module) -> tuple[int, int]:
    """Evaluations of the field so far, forward and backward, over all blocks."""
    found = ode_blocks(model)
    return sum(b.nfe_forward for b in found), sum(b.nfe_backward for b in found)


def training_step(
    workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, int]:
    """One step on the workload's batch; the evaluations that it made."""
    before = nfe(model)
    optimizer.zero_grad()
    task, batch = workload.task, workload.batch
    outputs = task.forward(model, batch, stream(0, "noise", workload.device))
    loss = task.loss(outputs, batch)
    if task.likelihood is not None and isinstance(optimizer, SNOpt):
        optimizer.curvature_pass(outputs, likelihood=task.likelihood, loss=loss)
    loss.backward()
    optimizer.step()
    after = nfe(model)
    return after[0] - before[0], after[1] - before[1]


def _flat(solver: Mapping[str, Any]) -> dict[str, Any]:
    """Solver settings as the configuration has them: our own options beside the others."""
    kept = {"steps": None, "max_steps": None, "warm_start": False, "compile": False}
    return {**kept, **solver}
