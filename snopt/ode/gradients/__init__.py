"""Gradients through a solve: one table of methods, behind one call.

``adjoint``
    The adjoint equation is solved backwards beside the state (Chen et al. 2018). Memory does not
    depend on the number of steps; the gradient is that of the exact flow, up to the tolerance.
``adjoint-seminorm``
    The same, but the parameters' adjoint, a plain integral, does not steer the step size (Kidger et
    al. 2021). With a Runge-Kutta method it is not carried through the stages either: it is summed
    with the method's own weights once a step has been kept.
``checkpoint``
    The states at accepted steps are stored; the backward pass repeats each step and differentiates
    it. The exact gradient of the discrete solve.
``direct``
    Ordinary backpropagation through the solver's operations.

Each of them, when an observer listens, reports the boundaries of its accepted steps with state and
adjoint; the gradient itself is computed by the same operations either way.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from snopt.ode.gradients import adjoint, checkpointed, direct
from snopt.ode.gradients.again import linear_in_cotangents
from snopt.ode.gradients.context import Observer, SolveContext, vjp
from snopt.ode.gradients.detached import detached
from snopt.ode.gradients.entry import Gradient
from snopt.ode.gradients.tangent import moved_states
from snopt.ode.gradients.watching import together
from snopt.ode.integrate import Solver
from snopt.ode.tracing import exporting, transformed

__all__ = [
    "GRADIENTS",
    "Gradient",
    "Observer",
    "SolveContext",
    "check_gradient",
    "detached",
    "linear_in_cotangents",
    "solve",
    "solve_to_end",
    "through_layers",
    "together",
    "vjp",
]

_adjoint = partial(detached, forward=adjoint.solved, tangent=moved_states)

GRADIENTS: dict[str, Gradient] = {
    "adjoint": Gradient(partial(_adjoint, backward=adjoint.backward)),
    "adjoint-seminorm": Gradient(
        partial(_adjoint, backward=partial(adjoint.backward, seminorm=True))
    ),
    "checkpoint": Gradient(
        partial(detached, forward=checkpointed.solved, backward=checkpointed.backward),
        through_layers=True,
        repeats_steps=True,
    ),
    "direct": Gradient(direct.solved, through_layers=True, through_solver=True),
}
"""Gradient methods by name: what :class:`snopt.ODEBlock` takes as ``gradient``. A further one is
one row more."""


def check_gradient(name: str, solver: Solver) -> None:
    """Refuse a gradient method that there is not, or that does not go with a solver.

    Raises:
        ValueError: the message names what does.
    """
    if name not in GRADIENTS:
        raise ValueError(f"gradient={name!r}; choose one of {', '.join(GRADIENTS)}")
    GRADIENTS[name].check(name, solver.integrator, solver.options)


def through_layers() -> list[str]:
    """Names of the methods whose backward pass goes through every use of a layer."""
    return [name for name, kind in GRADIENTS.items() if kind.through_layers]


def solve(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """States at every time of ``t``, differentiable in ``y0`` and the parameters.

    Args:
        context: field, solver and kind of gradient.
        y0: initial state, one tensor.
        t: times of shape (T,), float64 on the CPU.

    Returns:
        States of shape (T, *y0.shape).

    Raises:
        SolverError: the solve failed, forwards or (from ``backward()``) backwards.
        ValueError: a function transform or an export meets a solve that it cannot see through.
    """
    if exporting() or transformed():
        return _seen_through(context, y0, t)
    if not torch.is_grad_enabled():
        return evaluated(context, y0, t)
    kind = GRADIENTS[context.gradient]
    if context.observer is not None or not kind.through_solver:
        # Somebody will evaluate the field again for this solve.
        context.held = context.hold(y0.device)
    return kind.solve(context, y0, t)


def _seen_through(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """Plain operations only, and none that looks at a number: for torch.export and torch.func."""
    if context.solver.steps is not None:
        return torch.stack(direct.unrolled(context, y0, t))
    through_solver = GRADIENTS[context.gradient].through_solver
    if context.solver.adaptive or not through_solver or exporting():
        raise ValueError(
            "torch.func and torch.export see through a solve only if the number of its steps is "
            "fixed: give options={'steps': ...}"
        )
    return (direct.direct if torch.is_grad_enabled() else evaluated)(context, y0, t)


def evaluated(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """:func:`solve` without a graph, by the very steps that the gradient would be taken through."""
    field, norm, kind = context.field, context.norm, GRADIENTS[context.gradient]
    if not kind.repeats_steps:
        return context.integrate(
            "forward", field, y0, t, norm=norm, exact_endpoint=kind.through_solver
        )
    states = [y0]
    for times in t.unfold(0, 2, 1):
        found = context.integrate(
            "forward", field, states[-1], times, norm=norm, exact_endpoint=True
        )
        states.append(found[-1])
    return torch.stack(states)


def solve_to_end(context: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    """The state at the last time of ``t``, as :func:`solve`; a tensor of its own.

    What follows may change it in place: the backward pass does not need it.
    """
    steps = context.solver.steps is not None and GRADIENTS[context.gradient].through_solver
    if steps and context.observer is None and torch.is_grad_enabled():
        return direct.unrolled(context, y0, t)[-1]
    return solve(context, y0, t)[-1].clone()
