"""Gradient methods whose solve has no graph, and whose backward pass is a function of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snopt.ode.gradients.context import SolveContext
from snopt.ode.gradients.kept import Kept, first_order

Forward = Callable[[SolveContext, Tensor, Tensor], Kept]
"""Solves from ``y0`` over the times, and keeps what the backward pass needs."""

Backward = Callable[[SolveContext, Kept, tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]
"""From the cotangent of the states, (T, *y0.shape), to the gradients of ``y0`` and the inputs."""


def detached(
    context: SolveContext, y0: Tensor, t: Tensor, *, forward: Forward, backward: Backward
) -> Tensor:
    """States at every time of ``t``, whose gradient is ``backward``'s.

    Args:
        context: field and solver.
        y0: initial state.
        t: times of shape (T,).
        forward: called without a graph, as ``forward(context, y0, t)``.
        backward: called as ``backward(context, kept, inputs, cotangent)``; inputs are the field's
            trainable parameters, then the other tensors that it held and that require gradients.
    """
    with torch.no_grad():
        kept = forward(context, y0, t)
    assert context.held is not None  # set for every solve that is come back to
    context.held = context.held.settled()
    known = context.parameters
    inputs = (y0, *known, *context.held.others(known))
    return _Detached.apply(context, kept, backward, *inputs)  # type: ignore[no-untyped-call,no-any-return]


class _Detached(torch.autograd.Function):
    """The states of a solve without a graph, with a backward pass."""

    @staticmethod
    def forward(
        ctx: Any, context: SolveContext, kept: Kept, backward: Backward, *inputs: Tensor
    ) -> Tensor:
        ctx.context, ctx.steps, ctx.found_by = context, kept.steps, backward
        # States are saved here alone: the output, held otherwise, would keep itself alive.
        ctx.save_for_backward(kept.times, kept.states, *kept.starts, *inputs[1:])
        return kept.states

    @staticmethod
    @first_order
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for ``y0`` and the inputs."""
        times, states, *rest = ctx.saved_tensors
        starts = sum(map(len, ctx.steps))
        kept, inputs = Kept(times, states, ctx.steps, rest[:starts]), tuple(rest[starts:])

        def backward(context: SolveContext, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            return (None, None, None, *ctx.found_by(context, kept, inputs, cotangent))

        with ctx.context.as_called():
            return ctx.context.answer(backward, cotangent)  # type: ignore[no-any-return]
