"""Gradient methods whose solve has no graph, and whose backward pass is a function of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snopt.ode.gradients.again import Forth, first_order
from snopt.ode.gradients.context import SolveContext
from snopt.ode.gradients.held import parametrized_apart, unheard
from snopt.ode.gradients.kept import Kept
from snopt.ode.gradients.other_draws import other_states, tell_of_draws

Forward = Callable[[SolveContext, Tensor, Tensor], Kept]
"""Solves from ``y0`` over the times, and keeps what the backward pass needs."""

Backward = Callable[[SolveContext, Kept, tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]
"""From the cotangent of the states, (T, *y0.shape), to the gradients of ``y0`` and the inputs."""

Tangent = Callable[[SolveContext, Kept, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
"""From changes of ``y0`` and the inputs to those of the states."""


def detached(
    context: SolveContext,
    y0: Tensor,
    t: Tensor,
    *,
    forward: Forward,
    backward: Backward,
    tangent: Tangent | None = None,
) -> Tensor:
    """States at every time of ``t``, whose gradient is ``backward``'s.

    Args:
        context: field and solver.
        y0: initial state.
        t: times of shape (T,).
        forward: called without a graph, as ``forward(context, y0, t)``.
        backward: called as ``backward(context, kept, inputs, cotangent)``; inputs are the field's
            trainable parameters, then the other tensors that it held and that require gradients.
        tangent: called as ``tangent(context, kept, inputs, changes)`` for products with the
            Jacobian; without, there are none.
    """
    others = other_states(context.module)
    with torch.no_grad(), parametrized_apart(cached=True):
        # A field that differentiates asks whether the state has a graph, and here it has none.
        kept = forward(context, y0.detach(), t)
    tell_of_draws(context.module, context.gradient, others)
    assert context.held is not None  # set for every solve that is come back to
    held = context.held.settled()
    known = context.parameters
    others = held.others(known)
    context.held, ends = held.cut_off(others)
    inputs = (y0, *known, *others)
    if not any(x.requires_grad for x in inputs):
        _refuse_strangers(context, y0, t)
    return _Detached.apply(context, kept, (backward, tangent), ends, *inputs)  # type: ignore[no-untyped-call,no-any-return]


def _refuse_strangers(context: SolveContext, y0: Tensor, t: Tensor) -> None:
    """Look at a solve that nobody will come back to: its field may depend on what it lacks."""
    y = y0.detach()

    def slope() -> Tensor:
        return context.field(t[0].to(y), y)

    with torch.enable_grad(), context.as_called():
        found = slope()
        if found.requires_grad:
            context.inspect(found, (y,), slope)


def _saved(ctx: Any) -> tuple[Kept, tuple[Tensor, ...]]:
    """The solve, and the inputs that its field sees on the way back."""
    times, states, *rest = ctx.saved_tensors
    starts = sum(map(len, ctx.steps))
    known = rest[starts : len(rest) - len(ctx.ends)]
    return Kept(times, states, ctx.steps, rest[:starts]), (*known, *ctx.ends)


def _products(ctx: Any) -> Forth | None:
    """What makes products with the Jacobian of a solve, where that can be."""
    context: SolveContext = ctx.context
    tangent: Tangent | None = ctx.found_by[1]
    if tangent is None:
        return None
    kept, inputs = _saved(ctx)

    def forth(*changes: Tensor) -> Tensor:
        with context.as_called(), unheard(inputs):
            return tangent(context, kept, inputs, changes)

    return forth


class _Detached(torch.autograd.Function):
    """The states of a solve without a graph, with a backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        context: SolveContext,
        kept: Kept,
        found_by: tuple[Backward, Tangent | None],
        ends: tuple[Tensor, ...],
        *inputs: Tensor,
    ) -> Tensor:
        ctx.context, ctx.steps, ctx.found_by, ctx.ends = context, kept.steps, found_by, ends
        # States are saved here alone: the output, held otherwise, would keep itself alive.
        ctx.save_for_backward(kept.times, kept.states, *kept.starts, *inputs[1:])
        return kept.states

    @staticmethod
    @first_order(_products)
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for ``y0`` and the inputs."""
        kept, inputs = _saved(ctx)

        def backward(context: SolveContext, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            return (None, None, None, None, *ctx.found_by[0](context, kept, inputs, cotangent))

        with ctx.context.as_called(), unheard(inputs):
            return ctx.context.answer(backward, cotangent)  # type: ignore[no-any-return]
