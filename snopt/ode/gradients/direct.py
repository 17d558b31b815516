"""Ordinary backpropagation through the solver's operations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from snopt.errors import SolverError
from snopt.ode.gradients.context import Observer, SolveContext
from snopt.ode.joining import Place, Shares
from snopt.ode.methods import Statistics
from snopt.ode.methods.equal_steps import step_grid
from snopt.ode.packing import all_finite
from snopt.ode.quadrature import Quadrature
from snopt.ode.runge_kutta import stage_times


def solved(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """:func:`direct`, in a compiled program too."""
    # A compiler would hide the boundaries of steps from those who watch them.
    states = (direct if context.observer is None else _uncompiled)(context, y0, t)
    if context.held is not None:
        context.held = context.held.settled()
    return states


def direct(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """Backpropagation through the solver's operations."""
    if context.observer is not None:
        # A tensor of its own: hooks on it must not see what else the caller does with y0.
        y0 = y0.clone() if y0.requires_grad else y0.detach().requires_grad_(True)
        context.observer.start(y0)
    boundaries: list[tuple[float, Tensor]] = []
    outputs: list[Tensor] = []
    if context.solver.steps is not None:
        outputs = unrolled(context, y0, t, boundaries)
        states = torch.stack(outputs)
    else:
        states = context.integrate(
            "forward",
            context.field,
            y0,
            t,
            norm=context.norm,
            exact_endpoint=True,
            on_step=lambda time, y, dt: boundaries.append((time, y)),
        )
    if context.observer is not None and states.requires_grad:
        between = [*zip(t[1:-1].tolist(), outputs[1:-1], strict=True)] if outputs else []
        _watch(context, context.observer, boundaries, between, states, float(t[-1]))
    return states


_uncompiled = torch.compiler.disable(direct)


def unrolled(
    context: SolveContext,
    y0: Tensor,
    t: Tensor,
    boundaries: list[tuple[float, Tensor]] | None = None,
) -> list[Tensor]:
    """Equal steps, ``solver.steps`` of them between output times, as one graph.

    Args:
        context: field and solver.
        y0: initial state.
        t: output times.
        boundaries: filled with start time and start state of every step.

    Returns:
        The states at the output times. Steps begin at tensors of their own, which the outputs'
        cotangents do not reach.

    Raises:
        SolverError: the last state is not finite.
    """
    outputs, y, statistics = [y0], y0, Statistics()
    stages = len(context.tableau.nodes)
    for times, dt, end in step_grid(t, context.solver.steps or 1):
        y = y.view_as(y)
        rows = stage_times(times, dt, context.tableau, y0, end).unbind()
        for time, row in zip(times, rows, strict=True):
            if boundaries is not None:
                boundaries.append((time, y))
            y = context.step(row, dt, y)
            statistics.nfe += stages
        outputs.append(y)
    context.count("forward", statistics)
    if not all_finite(y):
        raise SolverError("non-finite state", times[-1], dt, statistics.nfe)
    return outputs


def _watch(
    context: SolveContext,
    observer: Observer,
    boundaries: list[tuple[float, Tensor]],
    between: list[tuple[float, Tensor]],
    states: Tensor,
    end: float,
) -> None:
    """Tensor hooks that report the boundaries of a backpropagated solve, last one first.

    Args:
        context: the solve.
        observer: who is told.
        boundaries: start time and start state of every step.
        between: time and state of the outputs at which a step ends, but for the last. The adjoint
            jumps there by the output's cotangent.
        states: the outputs.
        end: the last one's time.
    """
    rules: list[Quadrature] = []
    last, start = states[-1].detach(), boundaries[0][0]

    def report(time: float, y: Tensor, shares: Shares) -> None:
        for rule, (_, a) in zip(rules, shares, strict=True):
            rule.boundary(time, y, a)

    def at_end(grad: Tensor, place: Place) -> None:
        rules.clear()
        if observer.active:
            shares = place.answer(grad[-1], observer.counted())
            seen = [context if sign == 1 else replace(context, sign=sign) for sign, _ in shares]
            rules.extend(observer.nodes(solve, end, start) for solve in seen)
            report(end, last, shares)

    def at_boundary(a: Tensor, place: Place, index: int, time: float, y: Tensor) -> None:
        if rules and observer.active:
            report(time, y, place.answer(a, observer.counted()))
            if index == 0:
                for rule in rules:
                    rule.finish()
                rules.clear()

    def at_output(a: Tensor, place: Place, time: float, y: Tensor) -> None:
        if rules and observer.active:
            for rule in rules:
                rule.finish()
            report(time, y, place.answer(a, observer.counted()))

    states.register_hook(partial(at_end, place=Place()))
    for index, (time, y) in enumerate(boundaries):
        known = partial(at_boundary, place=Place(), index=index)
        y.register_hook(partial(known, time=time, y=y.detach()))
    for time, y in between:
        y.register_hook(partial(at_output, place=Place(), time=time, y=y.detach()))
