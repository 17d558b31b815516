"""Steps after which the loss has risen are taken back by half, batch by batch.

A line search that costs nothing while steps are good: the next batch's losses, which training
computes anyway, judge the last step. Batches differ, so a rise counts where it exceeds chance, as
the spread of the samples' losses tells it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from snopt.optim.displacement import length_since, written_since
from snopt.optim.saving import copied, reading

_GROWTH = 1.5
"""How much longer the next step may be than the one before, once a step has been taken back."""

_IN_A_ROW = 3
"""Halvings after which the new losses are taken for what they are."""


class Backtracking:
    """Parameters before the last step, and the losses that they had.

    Args:
        parameters: the parameters by name.
        errors: standard errors by which the mean loss must have risen, > 0; infinity: never.

    Attributes:
        halvings: how often a step has been halved so far.

    Raises:
        ValueError: ``errors`` is not above zero.

    Source: Nocedal and Wright 2006, algorithm 3.1 (backtracking) and section 4.1 (the radius that
    follows the length of the last good step); judging on the next batch is ours.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], errors: float) -> None:
        if not errors > 0:
            raise ValueError(f"backtrack={errors!r}; expected a number > 0")
        self.parameters, self.errors = dict(parameters), float(errors)
        self.halvings = 0
        self._in_a_row = 0
        self._before: dict[str, Tensor] = {}
        self._expected: tuple[float, float] | None = None
        self._taken = 0.0
        self._radius = math.inf

    def halve(self, losses: Tensor) -> bool:
        """Go back half of the last step where the losses of the samples say so.

        Args:
            losses: shape (N,), of the coming batch.

        Returns:
            Whether it went back; the caller then leaves out its step.
        """
        losses = losses.double()
        spread = float(losses.var()) / len(losses) if len(losses) > 1 else 0.0
        mean = float(losses.mean())
        judged = self.errors < math.inf and self._taken > 0 and self._in_a_row < _IN_A_ROW
        if judged and self._expected is not None:
            past, error = self._expected
            # A mean that is not a number compares false and goes back too.
            if not mean - past <= self.errors * math.sqrt(spread + error):
                before = {self.parameters[name]: old for name, old in self._before.items()}
                if not written_since(before, self._taken):
                    for p, old in before.items():
                        p.lerp_(old.to(p), 0.5)
                    self._taken /= 2
                    self._radius = self._taken
                    self._in_a_row += 1
                    self.halvings += 1
                    return True
                self._radius = math.inf
        self._in_a_row = 0
        if math.isfinite(mean + spread):
            self._expected = (mean, spread)
        return False

    def remember(self) -> None:
        """Before a step: the parameters as they are."""
        self._before = {
            name: p.detach().clone()
            for name, p in self.parameters.items()
            if p.requires_grad or p.grad is not None  # frozen ones stay where they are
        }

    def shorten(self) -> None:
        """After a step: cut the move to the radius."""
        before = {self.parameters[name]: old for name, old in self._before.items()}
        self._taken = length_since(before)
        if self._taken > self._radius:
            for p, old in before.items():
                p.lerp_(old, 1 - self._radius / self._taken)
            self._taken = self._radius
        self._radius *= _GROWTH

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs."""
        return {
            "halvings": self.halvings,
            "in_a_row": self._in_a_row,
            "before": dict(self._before),
            "expected": self._expected,
            "taken": self._taken,
            "radius": self._radius,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        with reading():
            before = {n: copied(x, self.parameters[n].device) for n, x in state["before"].items()}
            halvings, in_a_row = int(state["halvings"]), int(state["in_a_row"])
            expected = state["expected"]
            expected = None if expected is None else (float(expected[0]), float(expected[1]))
            taken, radius = float(state["taken"]), float(state["radius"])
        for name, old in before.items():
            if old.shape != self.parameters[name].shape:
                raise ValueError(f"the state was saved for another model: see parameter {name!r}")
        self.halvings, self._in_a_row, self._before = halvings, in_a_row, before
        self._expected, self._taken, self._radius = expected, taken, radius
