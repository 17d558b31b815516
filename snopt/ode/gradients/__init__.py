"""Gradients through a solve: one table of methods, behind one call.

``adjoint``
    The adjoint equation is solved backwards beside the state (Chen et al. 2018). Memory does not
    depend on the number of steps; the gradient is that of the exact flow, up to the tolerance.
``adjoint-seminorm``
    The same, but the parameters' adjoint, a plain integral, does not steer the step size (Kidger et
    al. 2021). With a Runge-Kutta method it is not carried through the stages either: it is summed
    with the method's own weights once a step has been kept.
``checkpoint``
    The states at kept steps are stored; the backward pass repeats each step and differentiates it.
    The exact gradient of the discrete solve.
``direct``
    Ordinary backpropagation through the solver's operations.

Each of them, when an observer listens, reports the boundaries of its kept steps with state and
adjoint; the gradient itself is computed by the same operations either way.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from snopt.ode.gradients import adjoint, checkpointed, direct
from snopt.ode.gradients.detached import detached
from snopt.ode.gradients.entry import Gradient
from snopt.ode.gradients.problem import Observer, Solve, vector_jacobian
from snopt.ode.gradients.watching import together
from snopt.ode.tracing import exporting, transformed

__all__ = [
    "GRADIENTS",
    "Gradient",
    "Observer",
    "Solve",
    "detached",
    "solve",
    "solve_to_end",
    "through_layers",
    "together",
    "vector_jacobian",
]

GRADIENTS: dict[str, Gradient] = {
    "adjoint": Gradient(partial(detached, forward=adjoint.solved, backward=adjoint.backward)),
    "adjoint-seminorm": Gradient(
        partial(detached, forward=adjoint.solved, backward=partial(adjoint.backward, seminorm=True))
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


def through_layers() -> list[str]:
    """Names of the methods whose backward pass goes through every use of a layer."""
    return [name for name, kind in GRADIENTS.items() if kind.through_layers]


def solve(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """States at every time of ``t``, differentiable in ``y0`` and the parameters.

    Args:
        problem: field, solver and kind of gradient.
        y0: initial state, one tensor.
        t: times of shape (T,), float64 on the CPU.

    Returns:
        States of shape (T, *y0.shape).

    Raises:
        SolverError: the solve failed, forwards or (from ``backward()``) backwards.
        ValueError: a function transform or an export meets a solve that it cannot see through.
    """
    if exporting() or transformed():
        return _seen_through(problem, y0, t)
    if not torch.is_grad_enabled():
        return evaluated(problem, y0, t)
    kind = GRADIENTS[problem.gradient]
    if problem.observer is not None or not kind.through_solver:
        # Somebody will evaluate the field again for this solve.
        problem.held = problem.hold(y0.device)
    return kind.solve(problem, y0, t)


def _seen_through(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """Plain operations only, and none that looks at a number: for torch.export and torch.func."""
    if problem.solver.steps is not None:
        return torch.stack(direct.unrolled(problem, y0, t))
    through_solver = GRADIENTS[problem.gradient].through_solver
    if problem.solver.adaptive or not through_solver or exporting():
        raise ValueError(
            "torch.func and torch.export see through a solve only if the number of its steps is "
            "fixed: give options={'steps': ...}"
        )
    return (direct.direct if torch.is_grad_enabled() else evaluated)(problem, y0, t)


def evaluated(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """:func:`solve` without a graph, by the very steps that the gradient would be taken through."""
    field, norm, kind = problem.field, problem.norm, GRADIENTS[problem.gradient]
    if not kind.repeats_steps:
        return problem.integrate("forward", field, y0, t, norm=norm, land=kind.through_solver)
    states = [y0]
    for times in t.unfold(0, 2, 1):
        found = problem.integrate("forward", field, states[-1], times, norm=norm, land=True)
        states.append(found[-1])
    return torch.stack(states)


def solve_to_end(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """The state at the last time of ``t``, as :func:`solve`; a tensor of its own.

    What follows may change it in place: the backward pass does not need it.
    """
    steps = problem.solver.steps is not None and GRADIENTS[problem.gradient].through_solver
    if steps and problem.observer is None and torch.is_grad_enabled():
        return direct.unrolled(problem, y0, t)[-1]
    return solve(problem, y0, t)[-1].clone()
