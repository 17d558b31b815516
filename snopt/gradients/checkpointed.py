"""Kept steps are stored, then repeated and differentiated one by one on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snopt.gradients.problem import Solve, vector_jacobian
from snopt.runge_kutta import clock
from snopt.solve import Statistics


class Checkpointed(torch.autograd.Function):
    """Keeps the states of kept steps; repeats and differentiates each step on the way back."""

    @staticmethod
    def forward(ctx: Any, problem: Solve, t: Tensor, y0: Tensor, *parameters: Tensor) -> Tensor:
        """States at every time of ``t``, shape (T, *y0.shape)."""
        outputs, starts, steps = [y0], [], []
        with torch.no_grad():
            for i in range(len(t) - 1):
                begun: list[tuple[float, float]] = []

                def on_step(
                    time: float,
                    y: Tensor,
                    dt: float,
                    begun: list[tuple[float, float]] = begun,
                ) -> None:
                    begun.append((time, dt))
                    starts.append(y)

                interval = problem.integrate(
                    "forward",
                    problem.field,
                    outputs[-1],
                    t[i : i + 2],
                    norm=problem.norm,
                    land=True,
                    on_step=on_step,
                )
                outputs.append(interval[-1])
                steps.append(begun)
        ctx.problem, ctx.steps = problem, steps
        states = torch.stack(outputs)
        ctx.save_for_backward(t, states, *starts, *parameters)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for ``y0`` and the parameters."""
        with ctx.problem.held.restored():
            return _backward(ctx, grad_states)


def _backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
    problem: Solve = ctx.problem
    count = sum(len(begun) for begun in ctx.steps)
    t, states, *rest = ctx.saved_tensors
    starts, parameters = list(rest[:count]), tuple(rest[count:])
    gradients = [torch.zeros_like(p) for p in parameters]
    times, a, statistics = t.tolist(), grad_states[-1], Statistics()
    stages = len(problem.tableau.nodes)
    for i in range(len(times) - 1, 0, -1):
        nodes = problem.watched(times[i], times[i - 1])
        if nodes is not None:
            nodes.boundary(times[i], states[i], a)
        for time, dt in reversed(ctx.steps[i - 1]):
            y = starts.pop()
            a, *grads = _repeat_step(problem, time, dt, y, a, parameters)
            if grads:
                torch._foreach_add_(gradients, grads)
            statistics.nfe += stages
            if nodes is not None:
                nodes.boundary(time, y, a)
        if nodes is not None:
            nodes.finish()
        a = a + grad_states[i - 1]
    problem.count("backward", statistics)
    return None, None, a, *gradients


def _repeat_step(
    problem: Solve, time: float, dt: float, y: Tensor, a: Tensor, parameters: tuple[Tensor, ...]
) -> list[Tensor]:
    (row,) = clock([time], dt, problem.tableau, y)
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        y_next = problem.step(row, dt, y)
    return vector_jacobian([y_next], (y, *parameters), [a])
