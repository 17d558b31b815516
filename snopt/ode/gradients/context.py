"""What every gradient needs to know of one call of a block, and who may watch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snopt.ode.gradients.held import Held, inspect
from snopt.ode.gradients.kept import Backward
from snopt.ode.integrate import Solver, integrate
from snopt.ode.joining import Passes, Place
from snopt.ode.methods import Statistics
from snopt.ode.methods.base import Time
from snopt.ode.packing import Layout
from snopt.ode.quadrature import Quadrature
from snopt.ode.runge_kutta import Field, Tableau
from snopt.ode.runge_kutta import step as runge_kutta_step


class Observer(Protocol):
    """Somebody who wants to see the boundaries of a backward pass."""

    @property
    def active(self) -> bool:
        """Whether the backward pass that runs now is the one to watch."""

    def start(self, y0: Tensor) -> None:
        """The state that backpropagation must reach for every boundary to be reported."""

    def counted(self) -> list[Passes]:
        """Where the backward pass that runs now is counted; empty if it shall stand alone."""

    def nodes(self, solve: SolveContext, start: float, end: float) -> Quadrature:
        """A quadrature rule for one interval, from ``start`` to ``end`` in backward order."""


@dataclass
class SolveContext:
    """One call of a block: all that its gradient needs.

    Attributes:
        field: the field over one tensor.
        module: the field as the caller's module.
        layout: shapes behind the tensor.
        solver: how to solve.
        gradient: the name of one of :data:`snopt.ode.gradients.GRADIENTS`.
        count: called with (direction, statistics) after every solve.
        first_step: returns the step to start a solve of that direction with, or ``None``.
        hold: returns what the field holds now, called with the device.
        stepper: one Runge-Kutta step, compiled or not.
        observer: who watches the backward pass, if anybody.
        held: what the field held at the call, for evaluations on the way back.
        sign: of what is seen: 1 if it is to be counted, -1 if it is to be taken back.
        place: what backward passes have brought to the solve's end.
    """

    field: Field
    module: nn.Module
    layout: Layout
    solver: Solver
    gradient: str
    count: Callable[[str, Statistics], None]
    first_step: Callable[[str], float | None]
    hold: Callable[[torch.device], Held]
    stepper: Callable[[Tensor, Tensor], Tensor] | None = None
    observer: Observer | None = None
    held: Held | None = None
    sign: int = 1
    place: Place = dataclasses.field(default_factory=Place)

    def integrate(
        self, direction: str, function: Field, y0: Tensor, t: Tensor, **keywords: Any
    ) -> Tensor:
        """:func:`snopt.ode.integrate.integrate` with this block's solver, counted."""
        states, statistics = integrate(
            function, y0, t, self.solver, first_step=self.first_step(direction), **keywords
        )
        self.count(direction, statistics)
        return states

    @property
    def norm(self) -> Callable[[Tensor], Tensor]:
        """The error norm, without a graph: the user's own on the state, or the layout's."""
        own = self.solver.options.get("norm")
        # With a graph, direct backpropagation would differentiate the choice of the first step.
        return self.layout.norm if own is None else lambda y: own(self.layout.unpack(y.detach()))

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The field's trainable parameters."""
        return tuple(p for p in self.module.parameters() if p.requires_grad)

    def as_called(self) -> AbstractContextManager[None]:
        """Inside, evaluations see what the field held at the call, and leave no trace."""
        assert self.held is not None  # set wherever somebody comes back to a solve
        return self.held.restored()

    def inspect(
        self, slope: Tensor, known: tuple[Tensor, ...], again: Callable[[], Tensor]
    ) -> None:
        """:func:`snopt.ode.gradients.held.inspect` for this field."""
        inspect(self.module, slope, known, again)

    @property
    def tableau(self) -> Tableau:
        """The solver's Runge-Kutta method."""
        return self.solver.tableau

    def step(self, row: Tensor, dt: Time, y: Tensor) -> Tensor:
        """One step of that method, from its row of :func:`snopt.ode.runge_kutta.stage_times`."""
        if self.stepper is not None:
            return self.stepper(row, y)
        number = None if isinstance(dt, Tensor) else dt
        return runge_kutta_step(self.field, row, y, self.tableau, number)

    def watched(self, start: float, end: float) -> Quadrature | None:
        """A quadrature rule for one interval if somebody watches this backward pass."""
        if self.observer is None or not self.observer.active:
            return None
        return self.observer.nodes(self, start, end)

    def answer(self, backward: Backward, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of one backward pass, and all that an observer is to see of it.

        Args:
            backward: takes a solve and ``grad``, reports to the solve's observer.
            grad: the cotangent of the states.
        """
        if self.observer is None or not self.observer.active:
            return backward(self, grad)
        shares = self.place.answer(grad, self.observer.counted())
        if len(shares) == 1:
            return backward(self, grad)
        found = backward(replace(self, observer=None), grad)
        for sign, share in shares:
            backward(replace(self, sign=sign, count=self._count_curvature), share)
        return found

    def _count_curvature(self, direction: str, statistics: Statistics) -> None:
        # Its steps are not those that the next solve starts with.
        self.count("curvature", Statistics(statistics.nfe))


def vjp(
    outputs: list[Tensor],
    inputs: tuple[Tensor, ...],
    cotangents: list[Tensor],
    retain: bool = False,
) -> list[Tensor]:
    """Products of ``cotangents`` with the Jacobian of ``outputs``; zeros where there is no path."""
    if not inputs:
        return []
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    try:
        grads = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [c for _, c in pairs],
            allow_unused=True,
            retain_graph=retain,
        )
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise RuntimeError(
            "the field's slopes go back to tensors that were computed before the solve and are no "
            "attributes of it (weights in a closure?), through a graph that is gone after one of "
            "the solve's evaluations: set these tensors on the field before the call "
            "(field.weights = [...]), put them into the state, or use gradient='direct'"
        ) from error
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]
