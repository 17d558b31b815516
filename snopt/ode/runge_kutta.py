"""Explicit Runge-Kutta steps as plain differentiable functions.

torchdiffeq decides how long the steps are; these functions take one step of a given length, so that
the backward pass can repeat it, and so that a fixed number of steps unrolls into a graph that
``torch.compile`` takes whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snopt.ode.tracing import exporting

Field = Callable[[Tensor, Tensor], Tensor]
"""A vector field (t, y) -> dy/dt over one tensor."""


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge-Kutta method.

    Attributes:
        nodes: stage times c_i as fractions of the step.
        stages: row i holds the weights a_ij of the earlier slopes in stage i + 1.
        weights: the weights b_i of the slopes in the step.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau((0.0,), (), (1.0,)),
    "midpoint": Tableau((0.0, 1 / 2), ((1 / 2,),), (0.0, 1.0)),
    "heun2": Tableau((0.0, 1.0), ((1.0,),), (1 / 2, 1 / 2)),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "bosh3": Tableau((0.0, 1 / 2, 3 / 4), ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
    "dopri5": Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
}
"""Methods whose every step is a function of (t, dt, y) alone, so that it can be taken here: equal
steps, compiled and exported ones, and those that ``gradient="checkpoint"`` repeats.

Those of torchdiffeq have its names and coefficients (rk4 is the 3/8 rule); a name that it does not
know is a method of our own, for equal steps alone. A further one is one row more.

Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.1 to II.5."""


def stage_times(
    times: Sequence[float], dt: float, tableau: Tableau, like: Tensor, end: float | None = None
) -> Tensor:
    """Stage times of equal steps, and their length: a row (t_1, ..., t_s, dt) for each step.

    Args:
        times: start times of the steps.
        dt: their signed length.
        tableau: the method, of s stages.
        like: a tensor of the state's dtype and device.
        end: where the last step ends at the latest; rounding may carry its last stage past.

    Returns:
        Shape (len(times), s + 1).
    """
    rows = [[*(time + node * dt for node in tableau.nodes), dt] for time in times]
    if end is not None and not exporting():
        *last, _ = rows[-1]
        if max(last) > end if dt > 0 else min(last) < end:
            rows[-1] = [*(min(t, end) if dt > 0 else max(t, end) for t in last), dt]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def step(field: Field, row: Tensor, y: Tensor, tableau: Tableau, dt: float | None = None) -> Tensor:
    """One explicit Runge-Kutta step.

    Args:
        field: the vector field.
        row: the step's row of :func:`stage_times`; (s + 1, N) where every sample has its own.
        y: state of any shape.
        tableau: the method.
        dt: the row's last number. With it, weights are plain numbers and two thirds of the
            operations between evaluations are saved; without it, nothing but tensors enters, so
            that a compiled step serves every length.

    Returns:
        The state at the step's end, of ``y``'s shape, differentiable in ``y`` and the parameters.
    """
    *times, length = row.unbind()
    if length.ndim:
        length = length.reshape(-1, *[1] * (y.ndim - 1))
    slopes: list[Tensor] = []

    def move(weights: tuple[float, ...]) -> Tensor:
        if dt is None:
            return _move_by_tensor(y, length, weights, slopes)
        return _move(y, dt, weights, slopes)

    for i, time in enumerate(times):
        slopes.append(field(time, y if i == 0 else move(tableau.stages[i - 1])))
    return move(tableau.weights)


def _move(y: Tensor, dt: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = y
    for weight, slope in zip(weights, slopes, strict=True):
        if weight == 0.0:
            continue
        if total is y:
            total = torch.add(y, slope, alpha=weight * dt)
        else:
            total.add_(slope, alpha=weight * dt)
    return total


def _move_by_tensor(
    y: Tensor, dt: Tensor, weights: tuple[float, ...], slopes: list[Tensor]
) -> Tensor:
    # Inductor (torch 2.13) fuses add(total, mm(..), alpha) into addmm and drops alpha: none here.
    used = [slope * weight for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.addcmul(y, sum(used[1:], used[0]), dt) if used else y
