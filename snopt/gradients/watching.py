"""Several observers of one solve, seen as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from snopt.gradients.problem import Observer, Solve
from snopt.nodes import Nodes


def together(observers: Collection[Observer]) -> Observer | None:
    """One observer that stands for all, ``None`` where there are none."""
    found = list(observers)
    return _Several(found) if len(found) > 1 else next(iter(found), None)


class _Several:
    """Observers of one call of a block."""

    def __init__(self, observers: list[Observer]) -> None:
        self.observers = observers
        self.numbers: list[int] = []

    @property
    def active(self) -> bool:
        return any(x.active for x in self.observers)

    def begin(self) -> int:
        self.numbers = [x.begin() for x in self.observers]
        return 0

    def start(self, y0: Tensor) -> None:
        for x in self.observers:
            x.start(y0)

    def nodes(self, solve: Solve, start: float, end: float) -> Nodes:
        pairs = zip(self.observers, self.numbers, strict=True)
        return _All(
            [x.nodes(replace(solve, pass_number=i), start, end) for x, i in pairs if x.active]
        )


class _All:
    """Quadrature rules that hear of the same boundaries."""

    def __init__(self, rules: list[Nodes]) -> None:
        self.rules = rules

    def boundary(self, t: float, y: Tensor, a: Tensor) -> None:
        for rule in self.rules:
            rule.boundary(t, y, a)

    def finish(self) -> None:
        for rule in self.rules:
            rule.finish()
