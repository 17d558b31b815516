"""Levenberg-Marquardt damping in the suite: it moves, as in a loop written with the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from snopt import GaussNewton, LevenbergMarquardt, SNOpt, SolverError
from tasks.engine.records.clock import Clock
from tasks.engine.training.batches import BatchSampler
from tasks.engine.training.parallel import World
from tasks.engine.training.step import DivergedError, Step
from tasks.task import Batch, Task
from tests.support.task_cases import make

CPU = torch.device("cpu")
STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "diabetes": {"hidden": 3, "layers": 1, "batch_size": 64},
    "van_der_pol": {"hidden": 3, "layers": 1, "batch_size": 8, "missing": 0.2},
    "hare_lynx": {"hidden": 3, "layers": 1, "batch_size": 4, "segment": 4},
}
SMALL = {"points": 12, "segment": 5, "trajectories": 2, "unseen": 3}
SOLVER = {"method": "rk4", "options": {"steps": 1}, "gradient": "direct"}


def prepared(name: str) -> tuple[Task, nn.Module, BatchSampler]:
    task = make(name, **CASES[name], **(SMALL if name == "van_der_pol" else {}))
    splits = task.load(Path(), 0, CPU, torch.float64)
    torch.manual_seed(0)
    family = {"name": "mlp" if name == "diabetes" else "node"}
    model = task.build_model(family, SOLVER).double()
    return task, model, BatchSampler(splits.train, task.batch_size, seed=0)


def step_of(task: Task, model: nn.Module, optimizer: SNOpt) -> Step:
    return Step(task, model, optimizer, Clock(CPU), torch.Generator(), World(0, 1, CPU))


def loss_of(task: Task, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, targets and the loss, as the tasks' documents define them."""
    if task.name == "diabetes":
        outputs = model(batch[0])
        return outputs, batch[1], nn.functional.mse_loss(outputs, batch[1])
    start, times, targets, weights = batch
    outputs = model(start, times)
    return outputs, targets, (weights * (outputs - targets) ** 2).mean()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_loop_that_a_user_writes(name: str) -> None:
    task, model, sampler = prepared(name)
    optimizer = GaussNewton(model)
    step = step_of(task, model, optimizer)
    losses, dampings = [], []
    for _ in range(STEPS):
        losses.append(step.make(sampler.next()))
        dampings.append(optimizer.diagnostics()["damping"])

    task, own, sampler = prepared(name)
    mine = GaussNewton(own)
    for number in range(STEPS):
        batch = sampler.next()

        def closure(batch: Batch = batch) -> Tensor:
            mine.zero_grad()
            outputs, targets, loss = loss_of(task, own, batch)
            mine.curvature_pass(outputs, "gaussian", targets=targets, loss=loss)
            loss.backward()
            return loss

        assert losses[number] == pytest.approx(mine.step(closure).item(), rel=1e-9)
        assert dampings[number] == mine.diagnostics()["damping"]
    torch.testing.assert_close(
        parameters_to_vector(model.parameters()),
        parameters_to_vector(own.parameters()),
        rtol=1e-7,
        atol=1e-9,
    )
    assert len({0.01, *dampings}) > 2


@pytest.mark.parametrize("failure", [DivergedError("no number"), SolverError("x", 0.0, None, 0)])
def test_a_step_to_where_nothing_can_be_computed_is_taken_back(failure: Exception) -> None:
    task, model, sampler = prepared("diabetes")
    damping = LevenbergMarquardt(0.01, decay=0.5, every=1)
    step = step_of(task, model, GaussNewton(model, damping=damping))
    before = parameters_to_vector(model.parameters()).clone()
    calls = 0

    def failing(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise failure

    model.register_forward_pre_hook(failing)
    step.make(sampler.next())
    assert calls == 2
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    assert damping.value == 0.02


def test_the_batch_itself_may_not_fail() -> None:
    task, model, sampler = prepared("diabetes")
    step = step_of(task, model, GaussNewton(model))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="the training loss is nan"):
        step.make(sampler.next())


def test_a_number_is_damping_without_a_second_evaluation() -> None:
    task, model, sampler = prepared("diabetes")
    calls = 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_pre_hook(count)
    step_of(task, model, GaussNewton(model, damping=0.1)).make(sampler.next())
    assert calls == 1
