"""How many samples are behind a step, where no curvature is gathered that would tell."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from snopt.ode.block import ODEBlock
from snopt.ode.joining import Passes, Place
from snopt.ode.passes import Pass, current_pass


class Tally:
    """Counts what blocks see in the backward passes of a step; micro-batches add up."""

    def __init__(self) -> None:
        self._blocks: dict[ODEBlock, _Seen] = {}

    def start(self, blocks: Collection[ODEBlock]) -> None:
        """Count from the next forward pass on."""
        self.stop()
        origins: dict[int, int] = {}
        self._blocks = {block: _Seen(block, Passes(origins)) for block in blocks}
        for block, seen in self._blocks.items():
            block.listeners.add(seen)

    def stop(self) -> None:
        """Forget what was counted, and count no more."""
        for block, seen in self._blocks.items():
            block.listeners.discard(seen)
        self._blocks = {}

    def clear(self) -> None:
        """Count from nothing; forward passes already made still count when answered."""
        for seen in self._blocks.values():
            seen.passes.clear()

    @property
    def samples(self) -> int:
        """Samples so far."""
        return max((seen.passes.samples for seen in self._blocks.values()), default=0)


class _Seen:
    """The samples of one block."""

    def __init__(self, block: ODEBlock, passes: Passes) -> None:
        self.parameters, self.passes = list(block.field.parameters()), passes
        self._last, self._kind = -1, Pass.INNER

    def __call__(self, kind: Pass, batch: int, place: Place, grad: Tensor) -> None:
        number = current_pass()
        if kind is Pass.GRADIENTS and self._kind is Pass.LOSS:
            return
        another = 0 <= self._last != number and kind is Pass.LOSS
        if another and (self._kind is Pass.GRADIENTS or self._thrown_away()):
            self.passes.clear()
        self._last, self._kind = number, kind
        self.passes.count(batch)
        place.answer(grad, [self.passes])

    def _thrown_away(self) -> bool:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return not any(bool(grad.any()) for grad in grads)
