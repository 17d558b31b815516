"""What a solve keeps for its backward pass, and that this pass is not differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
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


def first_order(backward: Backward) -> Backward:
    """A backward function whose gradients say what to do when they are differentiated."""

    def wrapped(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled() and grad.requires_grad
        with torch.no_grad():
            found = backward(ctx, grad)
        if not again:
            return found
        refused: list[Tensor | None] = []
        for x in found:
            refused.append(None if x is None else _Once.apply(x, grad))  # type: ignore[no-untyped-call]
        return tuple(refused)

    return wrapped


class _Once(torch.autograd.Function):
    """The identity on a gradient; its own backward pass refuses."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, grad: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "gradients of gradient='adjoint', 'adjoint-seminorm' and 'checkpoint' cannot be "
            "differentiated again (create_graph=True): use gradient='direct'"
        )
