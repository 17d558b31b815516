"""Which backward passes belong together, for what is counted once however often it is answered.

Losses may be differentiated one after the other through one graph that is kept. The gradients then
hold the sum of their cotangents, and so must what is quadratic in these. Each place of such a graph
remembers what has come by: what was counted of it is taken back, and the sum is counted instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from snopt.ode.passes import current_pass

Shares = list[tuple[int, Tensor]]
"""Cotangents whose squares are to be counted, each with its sign."""


class Passes:
    """Counts samples once per backward pass, however often a module is used in it.

    A pass through a graph that an earlier one went through has that one's samples.

    Args:
        origins: by number of such a pass, that of the first; all of one optimizer share it, for
            a layer may be reached by new ways while others tell that the graph is the old one.

    Attributes:
        cleared: how often it began from nothing.
    """

    def __init__(self, origins: dict[int, int]) -> None:
        self.origins, self.cleared = origins, 0
        self._batches: dict[int, int] = {}
        self._smallest: dict[int, int] = {}

    def clear(self) -> None:
        """Count from nothing."""
        self._batches.clear()
        self._smallest.clear()
        self.cleared += 1

    def count(self, batch: int) -> None:
        """A use in the backward pass that runs now."""
        number = current_pass()
        self._batches[number] = max(batch, self._batches.get(number, 0))
        small = self._smallest.get(number, 1)
        if small == 1 or 1 < batch < small:  # a single row stands for every sample
            self._smallest[number] = batch

    @property
    def samples(self) -> int:
        """Samples so far: of each pass, those of its largest use."""
        return self._total(self._batches, max)

    @property
    def smallest(self) -> int:
        """The same by the smallest uses, which differ where a use's first dimension is another."""
        return self._total(self._smallest, min)

    def _total(self, sizes: Mapping[int, int], choose: Callable[[int, int], int]) -> int:
        found: dict[int, int] = {}
        for number, batch in sizes.items():
            origin = self.origins.get(number, number)
            found[origin] = choose(batch, found.get(origin, batch))
        return sum(found.values())


class Place:
    """One place of a graph, and the sum of the cotangents that backward passes have brought it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._pass = -1
        self._counted: list[tuple[Passes, int]] = []

    def answer(self, g: Tensor, counted: Sequence[Passes]) -> Shares:
        """Another cotangent has come.

        Args:
            g: the cotangent.
            counted: where its pass is counted; empty if it shall stand alone.

        Returns:
            What is to be counted now.
        """
        now = [(passes, passes.cleared) for passes in counted]
        before = self._sum if now and self._counted == now else None
        number, together = current_pass(), g.detach() if before is None else before + g.detach()
        if before is not None:
            for passes in counted:
                passes.origins[number] = passes.origins.get(self._pass, self._pass)
        # A graph that is freed now has no further pass, and what is kept goes with one that is not.
        self._sum, self._counted = None, []
        if torch._C._autograd._get_current_graph_task_keep_graph():
            self._sum, self._counted, self._pass = together, now, number
        return [(1, g)] if before is None else [(-1, before), (1, together)]
