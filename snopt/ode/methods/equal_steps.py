"""A fixed number of equal steps between output times, by a tableau."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from snopt.ode.methods.base import Method, Problem
from snopt.ode.runge_kutta import Tableau, stage_times, step


class EqualSteps(Method):
    """That many equal steps per output interval, without error control.

    Args:
        name: of the method.
        tableau: its coefficients.
        steps: how many.
    """

    tableau: Tableau

    def __init__(self, name: str, tableau: Tableau, steps: int) -> None:
        self.name, self.steps, self.tableau = name, steps, tableau

    @override
    def solve(self, problem: Problem) -> Tensor:
        outputs, y, sign = [problem.y0], problem.y0, problem.sign
        for times, dt, end in step_grid(problem.t, self.steps):
            for time, row in zip(times, stage_times(times, dt, self.tableau, y, end), strict=True):
                problem.attempt(time * sign, y, dt * sign)
                y_next = step(problem.forwards, row, y, self.tableau, dt)
                problem.accept(time * sign, y, dt * sign)
                y = y_next
            outputs.append(y)
        return torch.stack(outputs)

    @override
    def stage_times(self, steps: Sequence[Any], index: int, stop: float, like: Tensor) -> Tensor:
        end = stop if index == len(steps) - 1 else None
        return stage_times([steps[index].time], steps[index].dt, self.tableau, like, end)[0]


def step_grid(t: Tensor, steps: int) -> list[tuple[list[float], float, float]]:
    """Equal steps between the times of ``t``: per interval their starts and length, and its end."""
    grid = []
    for start, end in pairwise(t.tolist()):
        dt = (end - start) / steps
        grid.append(([start + i * dt for i in range(steps)], dt, end))
    return grid
