"""When rows of samples and outputs are compared with gradients."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

_FIRST_STEPS, _EVERY = 3, 50
"""They are compared in so many steps of a mode at first, and then once in so many."""


class CheckSteps:
    """Which steps compare rows with gradients.

    A mode is which modules train and which parameters are frozen. Batch normalization makes samples
    act on one another in one mode and not in the other, so that each mode has first steps.

    Args:
        modules: of the model.
        parameters: of the model.
    """

    def __init__(self, modules: Iterable[nn.Module], parameters: Iterable[Tensor]) -> None:
        self._modules, self._parameters = list(modules), list(parameters)
        self._made: dict[tuple[bool, ...], int] = {}
        self.look()

    def look(self) -> None:
        """The model makes a forward pass in its present mode."""
        trained = (p.requires_grad for p in self._parameters)
        self._mode = (*(m.training for m in self._modules), *trained)

    def count(self) -> None:
        """A step was made."""
        self._made[self._mode] = self._steps + 1

    @property
    def _steps(self) -> int:
        return self._made.get(self._mode, 0)

    @property
    def first(self) -> bool:
        """Whether the coming step is the first one in its mode."""
        return self._steps == 0

    @property
    def due(self) -> bool:
        """Whether the coming step compares."""
        return self._steps < _FIRST_STEPS or self._steps % _EVERY == 0
