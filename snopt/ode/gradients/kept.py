"""What a solve keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from snopt.ode.methods.base import Time


@dataclass(frozen=True)
class Step:
    """One accepted step.

    Attributes:
        time: where it began; (N,) where every sample takes steps of its own.
        dt: its signed length, likewise.
        generators: states of the random generators before each stage; empty if none was drawn.
    """

    time: Time
    dt: Time
    generators: tuple[list[Tensor], ...] = ()


@dataclass(frozen=True)
class Kept:
    """A forward solve without a graph.

    Attributes:
        times: shape (T,), float64 on the CPU.
        states: shape (T, *y0.shape).
        steps: the accepted steps of each interval, where they are to be repeated.
        starts: the states at which these began, one after the other.
    """

    times: Tensor
    states: Tensor
    steps: list[list[Step]] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)


Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]
