"""One step of training, with every part of it charged to its own bucket."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snopt import SolverError
from tasks.common.checks import ConfigError
from tasks.engine.optimizers.build import compares_losses, needs_closure
from tasks.engine.records import checkpoint
from tasks.engine.records.clock import Clock, compile_seconds
from tasks.engine.training.parallel import World
from tasks.task import Batch, Task

Inspect = Callable[[Batch, dict[str, Any]], None]
"""Called with a batch and the random state before its forward pass, once there are gradients."""


class DivergedError(RuntimeError):
    """Training cannot go on from here: a loss that is not finite, or a solve that failed."""


class Step:
    """Makes training steps.

    Args:
        task: runs the model and says what its loss is.
        model: the model to run forward, wrapped where training is data-parallel.
        optimizer: any; L-BFGS and Levenberg-Marquardt damping get a closure, and one with a
            ``curvature_pass`` is called between the forward and the backward pass where the task
            has a likelihood.
        clock: charged for every part.
        noise: the task's own random stream.
        world: the processes that train together.
        skip_failures: leave out a batch whose solve fails, rather than end the run.
        create_graph: keep the gradient's graph, for optimizers that differentiate it again.
    """

    #: So many failures in a row end a run that skips them.
    MOST_SKIPPED = 100

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clock: Clock,
        noise: torch.Generator,
        world: World,
        *,
        skip_failures: bool = False,
        create_graph: bool = False,
    ) -> None:
        self._task = task
        self._model = model
        self._optimizer: Any = optimizer
        self._clock = clock
        self._noise = noise
        self._world = world
        self._skip_failures = skip_failures
        self._create_graph = create_graph
        self._compares_losses = compares_losses(optimizer)
        self._needs_closure = self._compares_losses or needs_closure(optimizer)
        self._curvature_pass: Callable[..., None] | None = None
        if task.likelihood is not None:
            self._curvature_pass = getattr(optimizer, "curvature_pass", None)
        self._skipped_in_a_row = 0

    def make(self, batch: Batch, inspect: Inspect | None = None) -> float | None:
        """Train on a batch.

        Args:
            batch: tensors of shape (B, ...), this process's share.
            inspect: called off the training clock, before the optimizer sees the gradients.

        Returns:
            The loss before the step, over all processes; ``None`` for a step that was skipped.

        Raises:
            DivergedError: the loss is not finite, or a solve failed; the parameters are those
                before the step.
            ConfigError: the optimizer's settings do not do for this model and batch.
        """
        try:
            loss = self._descend(batch, inspect)
        except SolverError as error:
            self._skipped_in_a_row += 1
            if not self._skip_failures:
                raise DivergedError(f"a solve failed: {error}") from error
            if self._skipped_in_a_row >= self.MOST_SKIPPED:
                raise DivergedError(
                    f"{self._skipped_in_a_row} solves in a row failed, the last one: {error}"
                ) from error
            self._optimizer.zero_grad()
            return None
        self._skipped_in_a_row = 0
        return loss

    def _descend(self, batch: Batch, inspect: Inspect | None) -> float:
        if not self._needs_closure:
            loss = self._gradient(batch, inspect)
            self._update()
            return float(loss)
        first: list[float] = []
        noise = self._noise.get_state()

        def closure() -> Tensor:
            self._noise.set_state(noise)  # one objective for all evaluations of a step
            try:
                loss = self._gradient(batch, None if first else inspect)
            except (DivergedError, SolverError):
                if not (first and self._compares_losses):
                    raise
                return torch.tensor(math.nan)  # of a step that is to be taken back
            first.append(float(loss))
            return loss

        self._update(closure)
        return first[0]

    def _forward(self, batch: Batch) -> Any:
        """The task's outputs; a solve that fails in one process fails in all of them."""
        failure: SolverError | None = None
        try:
            outputs = self._task.forward(self._model, batch, self._noise)
        except SolverError as error:
            failure = error
        (failed,) = self._world.any([failure is not None])
        if failure is not None:
            raise failure
        if failed:  # waiting for that process in the backward pass would never end
            raise SolverError("solver failure", math.nan, None, 0, "in another process")
        return outputs

    def _gradient(self, batch: Batch, inspect: Inspect | None) -> Tensor:
        clock = self._clock
        randomness = None if inspect is None else checkpoint.random_state(self._noise)
        clock.switch("forward")
        compiling = compile_seconds("forward")
        self._optimizer.zero_grad()
        outputs = self._forward(batch)
        loss = self._task.loss(outputs, batch)
        if self._curvature_pass is not None:
            clock.switch("curvature")
            try:
                self._curvature_pass(outputs, likelihood=self._task.likelihood, loss=loss)
            except ValueError as error:  # a batch alone shows that the settings do not fit
                raise ConfigError(
                    f"optim: {error}. In a run, gradient= is solver.gradient, and what is an "
                    "argument of the optimizer, such as memory=, optim.memory."
                ) from error
            clock.switch("forward")
        value = self._world.mean(loss.item())
        clock.switch("backward")
        clock.move(compile_seconds("forward") - compiling, "forward", "compile")
        if not math.isfinite(value):
            raise DivergedError(f"the training loss is {value}")
        compiling, curvature = compile_seconds("backward"), self._curvature_seconds()
        with warnings.catch_warnings():
            if self._create_graph:  # zero_grad drops the gradients, and their cycle with them
                warnings.filterwarnings("ignore", "Using backward", UserWarning)
            loss.backward(create_graph=self._create_graph)
        clock.switch("optimizer")
        clock.move(compile_seconds("backward") - compiling, "backward", "compile")
        clock.move(self._curvature_seconds() - curvature, "backward", "curvature")
        if inspect is not None and randomness is not None:
            with clock.during("evaluation"):
                inspect(batch, randomness)
        return loss.detach().new_tensor(value)

    def _update(self, closure: Callable[[], Tensor] | None = None) -> None:
        self._clock.switch("optimizer")
        curvature = self._curvature_seconds()
        if closure is None:
            self._optimizer.step()
            self._clock.move(self._curvature_seconds() - curvature, "optimizer", "curvature")
        else:
            self._optimizer.step(closure)

    def _curvature_seconds(self) -> float:
        return float(getattr(self._optimizer, "curvature_seconds", 0.0))
