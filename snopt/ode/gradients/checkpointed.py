"""Accepted steps are stored, then repeated and differentiated one by one on the way back.

A field may draw random numbers, for dropout say. So the states of the generators before each
evaluation are kept too, and set again before it is repeated, until it is known to draw none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snopt.ode.gradients.context import SolveContext, vjp
from snopt.ode.gradients.held import Held, drawn
from snopt.ode.gradients.kept import Kept, Step
from snopt.ode.methods import Statistics
from snopt.ode.methods.base import Time
from snopt.ode.runge_kutta import Field
from snopt.ode.runge_kutta import step as runge_kutta_step


def solved(context: SolveContext, y0: Tensor, t: Tensor) -> Kept:
    """The states, and the steps between them."""
    held = context.held
    assert held is not None  # set for every solve that is come back to
    # A second solve would draw and count once more: what may be random is recorded at once.
    recorder = _Recorder(context, held)
    before = [] if held.calm else held.generators()
    outputs: list[Tensor] = [y0]
    steps: list[list[Step]] = []
    for times in t.unfold(0, 2, 1):
        recorder.begin()
        found = context.integrate(
            "forward",
            recorder.field,
            outputs[-1],
            times,
            norm=context.norm,
            exact_endpoint=True,
            on_attempt=recorder.on_attempt,
            on_step=recorder.on_step,
        )
        outputs.append(found[-1])
        steps.append(recorder.steps)
    if not held.calm:
        held.calm = not drawn(before, held.generators())
    if held.calm:
        steps = [[replace(step, generators=()) for step in row] for row in steps]
    elif context.solver.integrator.per_sample:
        raise ValueError(
            f"field {type(context.module).__name__} draws random numbers (dropout?), and steps "
            "that samples take on their own cannot be repeated with the same ones: draw them "
            "before each solve and set them on the field, or choose a method by name"
        )
    return Kept(t, torch.stack(outputs), steps, recorder.starts)


class _Recorder:
    """The steps that are kept of a solve.

    Args:
        context: field and solver.
        held: what the field holds; unless it is known to draw none, the states of random generators
            are recorded.

    Attributes:
        starts: the states at which the steps began.
        steps: those of this interval.
    """

    def __init__(self, context: SolveContext, held: Held) -> None:
        self.context, self.held, self.random = context, held, not held.calm
        self.starts: list[Tensor] = []

    @property
    def field(self) -> Field:
        """The field to solve over."""
        return self._recorded if self.random else self.context.field

    def begin(self) -> None:
        """A new interval."""
        self.steps: list[Step] = []
        self._states: list[list[Tensor]] = []
        self._tried = 0
        self._first = 0

    def _recorded(self, t: Tensor, y: Tensor) -> Tensor:
        self._states.append(self.held.generators())
        return self.context.field(t, y)

    def on_attempt(self) -> None:
        """The stages of a step come next."""
        self._tried = len(self._states)

    def on_step(self, time: Time, y: Tensor, dt: Time) -> None:
        """The step that was tried last is kept."""
        found: list[list[Tensor]] = []
        if self.random:
            stages = len(self.context.tableau.nodes)
            if self.context.solver.integrator.fsal:
                # The first stage is the last evaluation of the step before.
                own = self._states[self._tried : self._tried + stages - 1]
                found = [self._states[self._first], *own]
                self._first = len(self._states) - 1
            else:
                found = self._states[self._tried : self._tried + stages]
        self.steps.append(Step(time, dt, tuple(found)))
        self.starts.append(y)


def backward(
    context: SolveContext, kept: Kept, inputs: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Each accepted step is repeated and differentiated, the last one first.

    Args:
        context: field and solver.
        kept: the forward solve.
        inputs: whose gradients are wanted beside the initial state's.
        cotangent: of the states.
    """
    states, starts, method = kept.states, list(kept.starts), context.solver.integrator
    gradients = [torch.zeros_like(x) for x in inputs]
    times, a, statistics = kept.times.tolist(), cotangent[-1], Statistics()
    for i in range(len(times) - 1, 0, -1):
        nodes = context.watched(times[i], times[i - 1])
        if nodes is not None:
            nodes.boundary(times[i], states[i], a)
        steps = kept.steps[i - 1]
        for index, step in reversed([*enumerate(steps)]):
            y = starts.pop()
            row = method.stage_times(steps, index, times[i], y)
            a, *grads = _repeat(context, step, row, y, a, inputs)
            if grads:
                torch._foreach_add_(gradients, grads)
            statistics.nfe += len(context.tableau.nodes)
            if nodes is not None:
                nodes.boundary(step.time, y, a)
        if nodes is not None:
            nodes.finish()
        a = a + cotangent[i - 1]
    context.count("backward", statistics)
    return (a, *gradients)


def _repeat(
    context: SolveContext, step: Step, row: Tensor, y: Tensor, a: Tensor, inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        y_next = _stepped(context, step, row, y)
        context.inspect(y_next, (y, *inputs), lambda: _stepped(context, step, row, y))
    return vjp([y_next], (y, *inputs), [a])


def _stepped(context: SolveContext, step: Step, row: Tensor, y: Tensor) -> Tensor:
    if not step.generators:
        return context.step(row, step.dt, y)
    held, states = context.held, iter(step.generators)
    assert held is not None  # set for every solve that is come back to

    def field(t: Tensor, y: Tensor) -> Tensor:
        held.set_generators(next(states))
        return context.field(t, y)

    return runge_kutta_step(field, row, y, context.tableau, float(step.dt))
