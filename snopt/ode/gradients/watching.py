"""Several observers of one solve, seen as one."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from snopt.ode.gradients.context import Observer, SolveContext
from snopt.ode.joining import Passes
from snopt.ode.methods.base import Time
from snopt.ode.quadrature import Quadrature


def together(observers: Collection[Observer]) -> Observer | None:
    """One observer that stands for all, ``None`` where there are none."""
    found = list(observers)
    return _Several(found) if len(found) > 1 else next(iter(found), None)


class _Several:
    """Observers of one call of a block."""

    def __init__(self, observers: list[Observer]) -> None:
        self.observers = observers

    @property
    def active(self) -> bool:
        return any(x.active for x in self.observers)

    def start(self, y0: Tensor) -> None:
        for x in self.observers:
            x.start(y0)

    def counted(self) -> list[Passes]:
        return [passes for x in self.observers if x.active for passes in x.counted()]

    def nodes(self, solve: SolveContext, start: float, end: float) -> Quadrature:
        return _All([x.nodes(solve, start, end) for x in self.observers if x.active])


class _All:
    """Quadrature rules that hear of the same boundaries."""

    def __init__(self, rules: list[Quadrature]) -> None:
        self.rules = rules

    def boundary(self, t: Time, y: Tensor, a: Tensor) -> None:
        for rule in self.rules:
            rule.boundary(t, y, a)

    def finish(self) -> None:
        for rule in self.rules:
            rule.finish()
