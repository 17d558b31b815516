"""One solve of one tensor-valued ODE: settings, and the method that they choose.

Everything above this module sees a single function, :func:`integrate`. It reports each accepted
step, counts evaluations, and turns what a solver complains of into
:class:`~snopt.errors.SolverError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from snopt.errors import SolverError
from snopt.ode.methods import Method, OnStep, Problem, Statistics, chosen
from snopt.ode.methods.settings import count, tolerance
from snopt.ode.packing import all_finite
from snopt.ode.runge_kutta import Field, Tableau

MOST_STEPS = 1_000_000
"""Steps tried between two output times before a solve is given up, where nobody chose a limit."""


@dataclass(frozen=True)
class Solver:
    """How to solve: torchdiffeq's method, tolerances and options, and this library's own.

    Attributes:
        method: the name of a method, or a method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        steps: that many equal steps per output interval, without error control.
        max_steps: steps tried per output interval before a solve is given up (``"too many
            steps"``); with error control :data:`MOST_STEPS` by default. SciPy's methods report no
            steps: their evaluations count.
        options: passed to the method as they are.
    """

    method: str | Method = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    steps: int | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, tolerance(name, getattr(self, name)))
        for name in ("steps", "max_steps"):
            object.__setattr__(self, name, count(name, getattr(self, name)))
        if self.adaptive and self.rtol == self.atol == 0:
            raise ValueError(
                "rtol=0 and atol=0: no step is short enough for no error at all; expected one of "
                "them > 0, or options={'steps': ...} for a solve without error control"
            )
        norm = self.options.get("norm")
        if norm is not None and not callable(norm):
            raise ValueError(
                f"options={{'norm': {norm!r}}}; expected a function of the state that returns a "
                "scalar tensor; for the seminorm choose gradient='adjoint-seminorm'"
            )
        if self.steps is not None and self.options:
            raise ValueError(
                f"options: {', '.join(sorted(self.options))}: without effect beside steps="
                f"{self.steps}, which takes equal steps; leave out one or the other"
            )

    def with_options(self, **options: Any) -> Solver:
        """A copy with further options of the method."""
        return replace(self, options={**self.options, **options})

    @cached_property
    def integrator(self) -> Method:
        """The method that these settings choose."""
        return chosen(self.method, self.steps)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.integrator.adaptive

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients, where it has some."""
        assert self.integrator.tableau is not None  # asked of methods that have one
        return self.integrator.tableau

    def limit(self, intervals: int) -> float:
        """Steps tried before a solve over so many output intervals is given up."""
        if self.max_steps is not None:
            return self.max_steps * intervals
        chooses = self.adaptive or not self.integrator.reports_steps
        return MOST_STEPS * intervals if chooses else math.inf


class OfSolver:
    """A setting that a block has of its solver, to be read; a new value would have no effect."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: Any, owner: type) -> Any:
        return self if block is None else getattr(block.solver, self.name)

    def __set__(self, block: Any, value: Any) -> None:
        raise AttributeError(
            f"block.{self.name} = {value!r}: how a block solves is chosen when it is made; make "
            "another one on the same field, ODEBlock(block.field, ...), or replace its solver: "
            f"block.solver = dataclasses.replace(block.solver, {self.name}=...)"
        )


def integrate(
    function: Field,
    y0: Tensor,
    t: Tensor,
    solver: Solver,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    first_step: float | None = None,
    exact_endpoint: bool = False,
    on_attempt: Callable[[], None] | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Statistics]:
    """Solve ``y' = function(t, y)`` from ``y(t[0]) = y0`` to every later time in ``t``.

    Args:
        function: the right-hand side over one tensor.
        y0: initial state of any shape.
        t: strictly increasing or strictly decreasing times, shape (T,), T >= 2, float64 on the CPU.
        solver: method, tolerances and options.
        norm: error norm of an adaptive method; root mean square by default.
        first_step: length of the first step; searched for by default (one more evaluation).
        exact_endpoint: step exactly onto the last time instead of past it with interpolation.
        on_attempt: called before the stages of every step that is tried.
        on_step: called for every accepted step.

    Returns:
        States of shape (T, *y0.shape), and what the solve did.

    Raises:
        SolverError: the step underflowed, too many steps were taken, or the state is not finite.
    """
    problem = Problem(
        function,
        y0,
        t,
        rtol=solver.rtol,
        atol=solver.atol,
        options=solver.options,
        limit=solver.limit(len(t) - 1),
        norm=norm,
        first_step=first_step,
        exact_endpoint=exact_endpoint,
        on_attempt=on_attempt,
        on_step=on_step,
    )
    try:
        states = solver.integrator.solve(problem)
    except SolverError:
        raise
    except Exception as error:
        problem.explain(error)
        raise
    if not all_finite(states[-1]):
        raise problem.failure("non-finite state")
    return states, problem.statistics
