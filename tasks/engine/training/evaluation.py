"""Measures a model on a split without leaving a trace in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import snopt
from snopt.ode.block import blocks
from tasks.common.seeding import stream
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.averaging import evaluation_weights
from tasks.engine.training.batches import evenly_spaced
from tasks.engine.training.learner import Learner
from tasks.task import Batch, Task

Values = Mapping[str, Mapping[str, float]]
"""By split and metric."""


class Evaluator:
    """Measures a model that trains on its splits, or on the parts of them that were asked for.

    Args:
        settings: the splits, how many samples of each, the solver of evaluations and the seed.
        learner: the model, its task and its data.
        device: where they are.
    """

    def __init__(self, settings: Settings, learner: Learner, device: torch.device) -> None:
        self._learner, self._seed, self._device = learner, settings.seed, device
        self._solver = settings.evaluation_solver()
        train, splits = settings.train, learner.splits
        self._parts = {
            split: evenly_spaced(getattr(splits, split), getattr(train, f"eval_{split}_samples"))
            for split in train.eval_splits
        }

    def measure(
        self, *, last: bool, reached: Callable[[Values], bool] = lambda found: False
    ) -> dict[str, dict[str, float]]:
        """Everything that the task measures, by split and metric.

        The evaluation that training ends with takes the whole test split, and measures the
        difference that a solver of its own makes to the loss, ``solver_gap``.

        Args:
            last: whether training is over.
            reached: whether it is over with these values, by split and metric; in such a run all
                evaluations take the whole test split.

        Raises:
            SolverError: a solve failed.
        """
        model = self._learner.model
        parts = {**self._parts}
        if last and "test" in parts:
            parts["test"] = self._learner.splits.test
        weights = evaluation_weights(self._learner.optimizer)
        with preserving_state(model, self._device), weights:
            with solved_by(self._solver, model):
                found = self._evaluate(parts)
            if self._solver is not None and (last or reached(found)):
                for split, trained in self._evaluate(parts).items():
                    found[split]["solver_gap"] = abs(found[split]["loss"] - trained["loss"])
        return found

    def _evaluate(self, parts: Mapping[str, Batch]) -> dict[str, dict[str, float]]:
        task, model = self._learner.task, self._learner.model
        return {split: evaluate(task, model, data, self._seed) for split, data in parts.items()}


@contextmanager
def solved_by(solver: Mapping[str, Any] | None, model: nn.Module) -> Iterator[None]:
    """Inside, every ODE block of the model solves by other settings.

    Args:
        solver: keyword arguments of :class:`snopt.ODEBlock`; ``None`` changes nothing.
        model: with the blocks.
    """
    found = [] if solver is None else list(blocks(model).values())
    names = ("solver", "warm_start", "compile_step")
    own = [[getattr(block, name) for name in names] for block in found]
    try:
        for block in found:
            other = snopt.ODEBlock(nn.Identity(), **(solver or {}))
            for name in names:
                setattr(block, name, getattr(other, name))
        yield
    finally:
        for block, values in zip(found, own, strict=True):
            for name, value in zip(names, values, strict=True):
                setattr(block, name, value)


@contextmanager
def preserving_state(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate inside: mode, random streams, NFE counters and warm starts are put back after."""
    training = model.training
    solver = snopt.solver_state(model)
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        model.train(training)
        snopt.load_solver_state(model, solver)


def evaluate(task: Task, model: nn.Module, data: Batch, seed: int) -> dict[str, float]:
    """Means over a split of everything that the task measures.

    Args:
        task: says how to run the model and what to measure.
        model: the model, in whatever mode :func:`preserving_state` has put it.
        data: tensors of shape (N, ...), sample first.
        seed: the run's root seed; every evaluation draws the same noise.
    """
    noise = stream(seed, "noise", data[0].device)
    samples = len(data[0])
    sums: dict[str, torch.Tensor] = {}
    for start in range(0, samples, task.eval_batch_size):
        batch = tuple(tensor[start : start + task.eval_batch_size] for tensor in data)
        values = task.measure(task.forward(model, batch, noise), batch)
        for name, value in values.items():
            total = value.detach().to(torch.float64).sum()
            sums[name] = sums[name] + total if name in sums else total
    return {name: float(total) / samples for name, total in sums.items()}
