"""Gradients through a solve, four ways, behind one call.

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

import torch
from torch import Tensor

from snopt.ode.gradients import adjoint, checkpointed
from snopt.ode.gradients.adjoint import Adjoint
from snopt.ode.gradients.checkpointed import Checkpointed
from snopt.ode.gradients.direct import direct, unrolled
from snopt.ode.gradients.problem import Observer, Solve, vector_jacobian
from snopt.ode.gradients.watching import together
from snopt.ode.tracing import exporting, transformed

__all__ = [
    "GRADIENTS",
    "Observer",
    "Solve",
    "solve",
    "solve_to_end",
    "together",
    "vector_jacobian",
]

GRADIENTS = ("adjoint", "adjoint-seminorm", "checkpoint", "direct")


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
    if _returns(problem):
        problem.held = problem.hold(y0.device)
    if problem.gradient == "direct":
        # A compiler would hide the boundaries of steps from those who watch them.
        watched = problem.observer is not None
        states = (torch.compiler.disable(direct) if watched else direct)(problem, y0, t)
        if problem.held is not None:
            problem.held = problem.held.settled()
        return states
    again = problem.gradient == "checkpoint"
    with torch.no_grad():
        kept = (checkpointed.solved if again else adjoint.solved)(problem, y0, t)
    assert problem.held is not None
    problem.held = problem.held.settled()
    known = problem.parameters
    others = problem.held.others(known)
    function = Checkpointed if again else Adjoint
    return function.apply(problem, kept, y0, *known, *others)  # type: ignore[no-untyped-call,no-any-return]


def _returns(problem: Solve) -> bool:
    """Whether somebody will evaluate the field again for this solve."""
    return problem.gradient != "direct" or problem.observer is not None


def _seen_through(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """Plain operations only, and none that looks at a number: for torch.export and torch.func."""
    if problem.solver.steps is not None:
        return torch.stack(unrolled(problem, y0, t))
    if problem.solver.adaptive or problem.gradient != "direct" or exporting():
        raise ValueError(
            "torch.func and torch.export see through a solve only if the number of its steps is "
            "fixed: give options={'steps': ...}"
        )
    return (direct if torch.is_grad_enabled() else evaluated)(problem, y0, t)


def evaluated(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """:func:`solve` without a graph, by the very steps that the gradient would be taken through."""
    field, norm = problem.field, problem.norm
    if problem.gradient != "checkpoint":
        land = problem.gradient == "direct"
        return problem.integrate("forward", field, y0, t, norm=norm, land=land)
    states = [y0]
    for times in t.unfold(0, 2, 1):
        found = problem.integrate("forward", field, states[-1], times, norm=norm, land=True)
        states.append(found[-1])
    return torch.stack(states)


def solve_to_end(problem: Solve, y0: Tensor, t: Tensor) -> Tensor:
    """The state at the last time of ``t``, as :func:`solve`; a tensor of its own.

    What follows may change it in place: the backward pass does not need it.
    """
    steps = problem.solver.steps is not None and problem.gradient == "direct"
    if steps and problem.observer is None and torch.is_grad_enabled():
        return unrolled(problem, y0, t)[-1]
    return solve(problem, y0, t)[-1].clone()
