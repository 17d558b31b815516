"""Damping: fixed, scheduled, or adapted to how well the quadratic model predicts the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class LevenbergMarquardt:
    """Damping that falls while the quadratic model predicts well and rises while it does not.

    Once in ``every`` steps, the change of the loss is divided by the predicted change. If this
    ratio is above 3/4, the damping is multiplied by ``decay ** every``; below 1/4, divided by it.

    Args:
        initial: damping to start from, > 0.
        decay: factor per step, in (0, 1).
        every: steps between two adaptations, each of which may call the closure once more.
        floor: smallest damping.
        ceiling: largest damping.

    Source: Martens and Grosse 2015, section 6.5.
    """

    def __init__(
        self,
        initial: float = 0.05,
        *,
        decay: float = 0.95,
        every: int = 5,
        floor: float = 1e-6,
        ceiling: float = 1e3,
    ) -> None:
        if not 0 < floor <= initial <= ceiling:
            raise ValueError(f"initial={initial!r}; expected floor={floor} <= it <= {ceiling}")
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r}; expected a number in (0, 1)")
        if every < 1:
            raise ValueError(f"every={every!r}; expected a whole number >= 1")
        self.value = float(initial)
        self.decay, self.every, self.floor, self.ceiling = decay, every, floor, ceiling

    def observe(self, actual: float, predicted: float) -> None:
        """Adapt to one step.

        Args:
            actual: the loss after the step minus the loss before.
            predicted: the quadratic model's change, negative for a step downhill.
        """
        # A NaN loss compares false everywhere below and counts as a bad prediction.
        ratio = actual / predicted if predicted < 0 else float("-inf")
        if ratio > 0.75:
            self.value *= self.decay**self.every
        elif not ratio >= 0.25:
            self.value /= self.decay**self.every
        self.value = min(max(self.value, self.floor), self.ceiling)

    def __call__(self, step: int) -> float:
        """The damping now, whatever the step."""
        return self.value


Damping = float | Callable[[int], float] | LevenbergMarquardt
"""A number, a function of the step, or a controller, which is one too."""


def damping_at(damping: Damping, step: int) -> float:
    """The damping of one step."""
    return damping(step) if callable(damping) else damping


NO_LOSS = (
    "Levenberg-Marquardt damping compares losses: call step(closure), with a closure that returns "
    "the loss"
)


def controller_at(
    groups: Iterable[Mapping[str, Any]], step: int, loss: Any
) -> LevenbergMarquardt | None:
    """The groups' controller, if it wants to compare losses in this step.

    Raises:
        ValueError: there is one, and no loss of a closure.
    """
    for group in groups:
        damping = group.get("damping")
        if isinstance(damping, LevenbergMarquardt):
            if loss is None:
                raise ValueError(NO_LOSS)
            return damping if step % damping.every == 0 else None
    return None
