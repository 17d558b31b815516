"""What a run trains: everything that a checkpoint restores but counters, clock and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import snopt
from tasks.engine.optimizers.averaging import averaging, evaluation_weights
from tasks.engine.training.batches import BatchSampler
from tasks.task import Splits, Task


@dataclass(frozen=True)
class Learner:
    """A model with what it learns from and what moves it.

    Attributes:
        task: the task, its data loaded.
        splits: train, validation and test data on the training device.
        sampler: draws the batches from the training split.
        model: the model to train, on the training device.
        optimizer: an optimizer of the model's parameters.
        horizon: what moves the integration time along with the optimizer, if anything does.
    """

    task: Task
    splits: Splits
    sampler: BatchSampler
    model: nn.Module
    optimizer: torch.optim.Optimizer
    horizon: snopt.Horizon | None = None

    def state_dict(self) -> dict[str, Any]:
        """States by part, as a checkpoint has them.

        ``averaged`` is the model as it is evaluated, of an optimizer that trains at other weights.
        """
        averaged = {}
        if averaging(self.optimizer):
            with evaluation_weights(self.optimizer):
                weights = {name: x.clone() for name, x in self.model.state_dict().items()}
            averaged = {"averaged": weights}
        return {
            **averaged,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "solver": snopt.solver_state(self.model),
            "horizon": None if self.horizon is None else self.horizon.state_dict(),
            "order": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; a checkpoint may hold more than that.

        Raises:
            ValueError: the optimizer's groups lack settings that it was built with.
        """
        own = [group.keys() for group in self.optimizer.param_groups]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for keys, group in zip(own, self.optimizer.param_groups, strict=True):
            if missing := [key for key in keys if key not in group]:
                raise ValueError(f"the optimizer's groups lack {', '.join(missing)}")
        if self.horizon is not None:
            self.horizon.load_state_dict(state["horizon"])
        snopt.load_solver_state(self.model, state["solver"])  # has t_span to the last bit
        self.sampler.load_state_dict(state["order"])
