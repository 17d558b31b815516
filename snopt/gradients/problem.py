"""What every gradient needs to know of one call of a block, and who may watch it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snopt.gradients.held import Held, inspect
from snopt.nodes import Nodes
from snopt.runge_kutta import TABLEAUS, Field, Tableau
from snopt.runge_kutta import step as runge_kutta_step
from snopt.solve import Solver, Statistics, integrate
from snopt.state import Layout


class Observer(Protocol):
    """Somebody who wants to see the boundaries of a backward pass."""

    @property
    def active(self) -> bool:
        """Whether the backward pass that runs now is the one to watch."""

    def begin(self) -> int:
        """The block is called: the number of the forward pass this belongs to."""

    def start(self, y0: Tensor) -> None:
        """The state that backpropagation must reach for every boundary to be reported."""

    def nodes(self, solve: Solve, start: float, end: float) -> Nodes:
        """A quadrature rule for one interval, from ``start`` to ``end`` in backward order."""


@dataclass
class Solve:
    """One call of a block: all that its gradient needs.

    Attributes:
        field: the field over one tensor.
        module: the field as the caller's module.
        layout: shapes behind the tensor.
        solver: how to solve.
        gradient: one of :data:`GRADIENTS`.
        count: called with (direction, statistics) after every solve.
        first_step: returns the step to start a solve of that direction with, or ``None``.
        stepper: one Runge-Kutta step, compiled or not.
        observer: who watches the backward pass, if anybody.
        pass_number: the observer's number of the forward pass.
        held: what the field held at the call, for evaluations on the way back.
    """

    field: Field
    module: nn.Module
    layout: Layout
    solver: Solver
    gradient: str
    count: Callable[[str, Statistics], None]
    first_step: Callable[[str], float | None]
    stepper: Callable[[Tensor, Tensor], Tensor] | None = None
    observer: Observer | None = None
    pass_number: int = 0
    held: Held | None = None

    def integrate(
        self, direction: str, function: Field, y0: Tensor, t: Tensor, **keywords: Any
    ) -> Tensor:
        """:func:`snopt.solve.integrate` with this block's solver, counted."""
        states, statistics = integrate(
            function, y0, t, self.solver, first_step=self.first_step(direction), **keywords
        )
        self.count(direction, statistics)
        return states

    def norm(self, flat: Tensor) -> Tensor:
        """The error norm, without a graph: the user's own on the state, or the layout's."""
        own, flat = self.solver.options.get("norm"), flat.detach()
        # With a graph, direct backpropagation would differentiate the choice of the first step.
        return self.layout.norm(flat) if own is None else own(self.layout.unpack(flat))

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
        """:func:`snopt.gradients.held.inspect` for this field."""
        inspect(self.module, slope, known, again)

    @property
    def tableau(self) -> Tableau:
        """The solver's Runge-Kutta method."""
        return TABLEAUS[self.solver.method]

    def step(self, row: Tensor, dt: float, y: Tensor) -> Tensor:
        """One step of that method, from its row of :func:`snopt.runge_kutta.clock`."""
        if self.stepper is not None:
            return self.stepper(row, y)
        return runge_kutta_step(self.field, row, y, self.tableau, dt)

    def watched(self, start: float, end: float) -> Nodes | None:
        """A quadrature rule for one interval if somebody watches this backward pass."""
        if self.observer is None or not self.observer.active:
            return None
        return self.observer.nodes(self, start, end)


def vector_jacobian(
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
    grads = torch.autograd.grad(
        [o for o, _ in pairs],
        inputs,
        [c for _, c in pairs],
        allow_unused=True,
        retain_graph=retain,
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]
