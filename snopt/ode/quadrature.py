"""Quadrature nodes of a backward solve: where curvature is measured, and with which weight.

A backward pass reports the boundaries of its accepted steps, one by one and backwards along the
solve, each with its state y and adjoint a. A rule turns them into nodes whose weights add up to the
length of the interval. Only the last boundary is kept, so memory does not depend on how many there
are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from snopt.ode.methods.base import Time

Visit = Callable[[Time, Tensor, Tensor, Time], None]
"""Called with (t, y, a, weight) for every node."""

Slopes = Callable[[float, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Time derivatives (y', a') at (t, y, a)."""


class Quadrature(Protocol):
    """A quadrature rule fed with step boundaries."""

    def boundary(self, t: Time, y: Tensor, a: Tensor) -> None:
        """The next boundary of an accepted step, or the far end of the interval.

        Args:
            t: its time; (N,) where every sample takes steps of its own.
            y: the state.
            a: the adjoint.
        """

    def finish(self) -> None:
        """No step begins at the last boundary: none comes any more, or one at which a jumps."""


class MidpointRule:
    """The midpoint rule on the solver's own steps: one node per accepted step.

    State and adjoint there are the means of those at the step's two ends. The error falls with the
    square of the step length, hence with the tolerance; it is half the trapezoidal rule's, at one
    node less.
    """

    def __init__(self, evaluate_node: Visit) -> None:
        self.evaluate_node = evaluate_node
        self.last: tuple[Time, Tensor, Tensor] | None = None

    def boundary(self, t: Time, y: Tensor, a: Tensor) -> None:
        """See :class:`Quadrature`."""
        if self.last is not None:
            t0, y0, a0 = self.last
            length: Time = abs(t - t0)  # type: ignore[assignment]
            self.evaluate_node((t0 + t) / 2, (y0 + y) / 2, (a0 + a) / 2, length)
        self.last = (t, y, a)

    def finish(self) -> None:
        """See :class:`Quadrature`."""
        self.last = None


class TrapezoidalRule:
    """The trapezoidal rule on equally spaced times, the choice of Liu et al. (2021).

    States between two boundaries come from cubic Hermite interpolation, so that the solve itself is
    the ordinary one and no solution is stored.

    Args:
        evaluate_node: called for every node.
        slopes: time derivatives at a boundary.
        start: time of the first boundary.
        end: time of the last boundary.
        points: nodes on the interval, both ends included, at least 2.
    """

    def __init__(
        self, evaluate_node: Visit, slopes: Slopes, start: float, end: float, points: int
    ) -> None:
        self.evaluate_node, self.slopes, self.end = evaluate_node, slopes, end
        spacing = (end - start) / (points - 1)
        self.weight = abs(spacing)
        self.pending = [start + i * spacing for i in range(points - 1)] + [end]
        self.pending.reverse()
        self.points = points
        self.last: tuple[float, Tensor, Tensor, Tensor, Tensor] | None = None

    def boundary(self, t: Time, y: Tensor, a: Tensor) -> None:
        """See :class:`Quadrature`."""
        if isinstance(t, Tensor):
            raise ValueError(
                "sampling='grid' needs steps that all samples share, and this method's samples "
                "take steps of their own: choose sampling='steps', or a method by name"
            )
        dy, da = self.slopes(t, y, a)
        if self.last is not None:
            t0, y0, a0, dy0, da0 = self.last
            forwards = t > t0
            while self.pending and (self.pending[-1] <= t if forwards else self.pending[-1] >= t):
                s = self.pending.pop()
                edge = len(self.pending) in (0, self.points - 1)
                self.evaluate_node(
                    s,
                    _hermite(t0, t, s, y0, y, dy0, dy),
                    _hermite(t0, t, s, a0, a, da0, da),
                    self.weight / 2 if edge else self.weight,
                )
        self.last = (t, y, a, dy, da)

    def finish(self) -> None:
        """See :class:`Quadrature`."""
        self.last = None


def _hermite(
    t0: float, t1: float, t: float, x0: Tensor, x1: Tensor, dx0: Tensor, dx1: Tensor
) -> Tensor:
    h = t1 - t0
    s = (t - t0) / h
    return (
        (1 + 2 * s) * (1 - s) ** 2 * x0
        + s * (1 - s) ** 2 * h * dx0
        + s * s * (3 - 2 * s) * x1
        + s * s * (s - 1) * h * dx1
    )
