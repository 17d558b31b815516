"""The variational equation, s' = F_y s + F_theta v: how states move with what they depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from snopt.ode.gradients.context import SolveContext, vjp
from snopt.ode.gradients.kept import Kept
from snopt.ode.packing import Layout


def moved_states(
    context: SolveContext, kept: Kept, inputs: tuple[Tensor, ...], moved: tuple[Tensor, ...]
) -> Tensor:
    """The derivative of the states along a direction, in O(1) memory in the number of steps.

    It is solved beside the state and leaves the step size alone: the forward solve's own steps.

    Args:
        context: field and solver.
        kept: the forward solve.
        inputs: that the field depends on.
        moved: the direction, in the initial state and the inputs.

    Returns:
        Shape (T, *y0.shape).
    """
    start, *others = moved
    layout = Layout([start.shape, start.shape])

    def slopes(t: Tensor, flat: Tensor) -> Tensor:
        y, s = layout.unpack(flat)
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            slope = context.field(t, y)
            change = _product(slope, (y, *inputs), (s, *others))
        return layout.pack((slope.detach(), change))

    states = context.integrate(
        "curvature",
        slopes,
        layout.pack((kept.states[0], start)),
        kept.times,
        norm=lambda flat: context.norm(layout.unpack(flat)[0]),
    )
    return layout.unpack(states)[1]


def _product(slope: Tensor, known: tuple[Tensor, ...], moved: tuple[Tensor, ...]) -> Tensor:
    """The slope's Jacobian times a vector: the derivative of the product with its transpose."""
    if not slope.requires_grad:
        return torch.zeros_like(slope)
    u = torch.zeros_like(slope, requires_grad=True)
    back = torch.autograd.grad(slope, known, u, create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(back, moved, strict=True) if g is not None]
    (change,) = vjp([g for g, _ in pairs], (u,), [v for _, v in pairs])
    return change
