"""One solve of one tensor-valued ODE: torchdiffeq's methods, or a fixed number of own steps.

Everything above this module sees a single function, :func:`integrate`. It reports each accepted
step, counts evaluations, and turns the solver's assertions into
:class:`~snopt.errors.SolverError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from snopt.errors import SolverError
from snopt.ode.methods import callbacks_of, check_method, check_steps, count, tolerance
from snopt.ode.packing import all_finite
from snopt.ode.runge_kutta import TABLEAUS, Field, stage_times, step
from snopt.ode.times import time_dtype

OnStep = Callable[[float, Tensor, float], None]
"""Called once a step has been taken and kept, with (start time, start state, signed length)."""


MOST_STEPS = 1_000_000
"""Steps tried between two output times before a solve is given up, where nobody chose a limit."""


@dataclass(frozen=True)
class Solver:
    """How to solve: torchdiffeq's method, tolerances and options, and this library's own.

    Attributes:
        method: a method of torchdiffeq.
        rtol: relative tolerance.
        atol: absolute tolerance.
        steps: that many equal steps per output interval, without error control.
        max_steps: steps tried before a solve is given up (``"too many steps"``); with error control
            :data:`MOST_STEPS` per output interval by default. SciPy's methods report no steps:
            their evaluations count.
        options: passed to torchdiffeq as they are.
    """

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    steps: int | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_method(self.method)
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
        check_steps(self.method, self.steps)

    def with_options(self, **options: Any) -> Solver:
        """A copy with further torchdiffeq options."""
        return replace(self, options={**self.options, **options})

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.steps is None and "callback_accept_step" in callbacks_of(self.method)

    def limit(self, intervals: int) -> float:
        """Steps tried before a solve over so many output intervals is given up."""
        if self.max_steps is not None:
            return self.max_steps
        chooses = self.adaptive or not callbacks_of(self.method)
        return MOST_STEPS * intervals if chooses else math.inf


@dataclass
class Statistics:
    """What one solve did.

    Attributes:
        nfe: evaluations of the right-hand side.
        longest: the longest step that was proposed and kept, 0 if none was reported.
    """

    nfe: int = 0
    longest: float = 0.0


class _TooManySteps(Exception):
    """Raised inside a solve once the step limit is reached."""


class _RightHandSide:
    """The field in forward time; subclasses have the callbacks that torchdiffeq looks for.

    torchdiffeq negates time itself when it decreases; its callbacks then mix signs, so the sign is
    kept here and the solver always runs forwards. Callbacks are methods of a class: set on the
    object, they would make it part of a cycle, which keeps states alive until Python looks for it.
    """

    def __init__(
        self,
        function: Field,
        sign: float,
        solver: Solver,
        on_attempt: Callable[[], None] | None,
        on_step: OnStep | None,
        end: float,
        exact_endpoint: bool,
        limit: float,
    ) -> None:
        self.end, self.exact_endpoint, self.limit = end, exact_endpoint, limit
        self.last: Tensor | None = None
        self.function, self.sign, self.solver = function, sign, solver
        self.on_attempt, self.on_step = on_attempt, on_step
        self.pending: tuple[Tensor | float, Tensor, Tensor | float] | None = None
        self.statistics = Statistics()
        self.tried = 0
        self.time: float | None = None
        self.dt: float | None = None

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        if self.exact_endpoint and self.statistics.nfe == 1:
            # The search for the first step looks ahead, maybe past the end.
            s = s.clamp(max=self.end)
        self.last = s
        self.statistics.nfe += 1
        return self.function(s, y) if self.sign > 0 else -self.function(-s, y)

    def forwards(self, t: Tensor, y: Tensor) -> Tensor:
        """The function itself, at its own time."""
        self.statistics.nfe += 1
        return self.function(t, y)

    def passed_the_end(self) -> bool:
        """Whether the last evaluation was at a time after the last one asked for."""
        return self.last is not None and float(self.last) > self.end + 1e-6 * abs(self.end)

    def explain(self, error: Exception) -> None:
        """Add to an error of the field's own what its author may not expect."""
        if self.passed_the_end():
            error.add_note(f"The field was called past the end of the solve: {_PAST_THE_END}.")

    def _attempt_step(self, s: Tensor | float, y: Tensor, ds: Tensor | float) -> None:
        self.time, self.dt = _number(s) * self.sign, _number(ds) * self.sign
        self._count_try()
        if self.on_attempt is not None:
            self.on_attempt()

    def _count_try(self) -> None:
        self.tried += 1
        if self.tried > self.limit:
            raise _TooManySteps

    def _accept_step(self, s: Tensor | float, y: Tensor, ds: Tensor | float) -> None:
        # The length that was proposed, before the step was cut to land on an output time.
        self.statistics.longest = max(self.statistics.longest, abs(self.dt or 0.0))
        length = _number(ds)
        if self.on_step is not None:
            self.on_step(_number(s) * self.sign, y, length * self.sign)

    def begin_fixed_step(self, s: Tensor | float, y: Tensor, ds: Tensor | float) -> None:
        """A step that is kept whatever it does, so that its beginning ends the one before."""
        self.end_fixed_step()
        self._attempt_step(s, y, ds)
        self.pending = (s, y, ds)

    def end_fixed_step(self) -> None:
        """Report the fixed step that was begun last."""
        if self.pending is not None:
            self._accept_step(*self.pending)
        self.pending = None


class _FixedRightHandSide(_RightHandSide):
    callback_step = _RightHandSide.begin_fixed_step


class _AdaptiveRightHandSide(_RightHandSide):
    callback_step = _RightHandSide._attempt_step
    callback_accept_step = _RightHandSide._accept_step


class _UnheardRightHandSide(_RightHandSide):
    """Under a solver that reports no steps, SciPy's, and would warn of callbacks."""

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        self.time = _number(s) * self.sign
        self._count_try()
        return super().__call__(s, y)


def _right_hand_side(solver: Solver) -> type[_RightHandSide]:
    heard = callbacks_of(solver.method)
    if "callback_accept_step" in heard:
        return _AdaptiveRightHandSide
    return _FixedRightHandSide if heard else _UnheardRightHandSide


def _number(x: Tensor | float) -> float:
    return float(x.detach()) if isinstance(x, Tensor) else x


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
    sign = 1.0 if t[-1] > t[0] else -1.0
    rhs = _right_hand_side(solver)(
        function, sign, solver, on_attempt, on_step, float(t[-1]) * sign, exact_endpoint,
        solver.limit(len(t) - 1),
    )  # fmt: skip
    times = (t * sign).to(time_dtype(y0.device)).to(y0.device)
    options = _in_solver_time(solver.options, sign)
    if solver.adaptive:
        if norm is not None:
            options["norm"] = norm
        if first_step is not None:
            options["first_step"] = first_step
        if exact_endpoint:
            options["step_t"] = _with_end(options.get("step_t"), times)
        if times.dtype != torch.float64:
            options.setdefault("dtype", times.dtype)
    try:
        if solver.steps is not None:
            states = _fixed_steps(rhs, y0, t, solver)
        else:
            states = torchdiffeq.odeint(
                rhs, y0, times, rtol=solver.rtol, atol=solver.atol,
                method=solver.method, options=options,
            )  # fmt: skip
    except _TooManySteps:
        raise _failure("too many steps", rhs, t, f"limit {rhs.limit:g}") from None
    except AssertionError as error:
        if not _raised_by_torchdiffeq(error):
            rhs.explain(error)
            raise
        message = re.split(r"[:{]", str(error), maxsplit=1)[0].strip()
        raise _failure(_reason(message), rhs, t, message) from None
    except Exception as error:
        rhs.explain(error)
        raise
    rhs.end_fixed_step()
    if len(states) < len(t):
        # SciPy's word for it is a status, which torchdiffeq does not pass on.
        raise _failure("step underflow", rhs, t, "SciPy's solver stopped before the end")
    if not all_finite(states[-1]):
        raise _failure("non-finite state", rhs, t, "")
    return states, rhs.statistics


def _in_solver_time(options: Mapping[str, Any], sign: float) -> dict[str, Any]:
    """Torchdiffeq's options for a solve in time ``sign * t``, which always grows."""
    found = dict(options)
    for name in ("step_t", "jump_t"):
        if found.get(name) is not None:
            found[name] = torch.as_tensor(found[name]) * sign
    grid = found.get("grid_constructor")
    if grid is not None and sign < 0:

        def turned(function: Any, y0: Tensor, s: Tensor) -> Tensor:
            times: Tensor = grid(function, y0, -s)
            return -times

        found["grid_constructor"] = turned
    return found


def _with_end(step_t: Tensor | None, times: Tensor) -> Tensor:
    end = times[-1:]
    if step_t is None:
        return end
    step_t = step_t.to(end)
    return torch.cat([step_t[step_t < end], end])


def _fixed_steps(rhs: _RightHandSide, y0: Tensor, t: Tensor, solver: Solver) -> Tensor:
    outputs, y, tableau = [y0], y0, TABLEAUS[solver.method]
    for times, dt, end in step_grid(t, solver.steps or 1):
        for time, row in zip(times, stage_times(times, dt, tableau, y0, end), strict=True):
            rhs.begin_fixed_step(time * rhs.sign, y, dt * rhs.sign)
            y = step(rhs.forwards, row, y, tableau, dt)
        outputs.append(y)
    return torch.stack(outputs)


def step_grid(t: Tensor, steps: int) -> list[tuple[list[float], float, float]]:
    """Equal steps between the times of ``t``: per interval their starts and length, and its end."""
    grid = []
    for start, end in pairwise(t.tolist()):
        dt = (end - start) / steps
        grid.append(([start + i * dt for i in range(steps)], dt, end))
    return grid


def _reason(message: str) -> str:
    if "underflow" in message:
        return "step underflow"
    if "max_num_steps" in message:
        return "too many steps"
    if "non-finite" in message:
        return "non-finite state"
    return "solver failure"


def _raised_by_torchdiffeq(error: AssertionError) -> bool:
    """Whether an assertion is the solver's own rather than the field's."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals["__name__"]).startswith("torchdiffeq")


_PAST_THE_END = (
    "an adaptive solve steps past it and interpolates, unless gradient='direct' or 'checkpoint', "
    "which land on it"
)


_SMALL = 1e-15
"""Tolerances below it may be what overflows: the search for a first step squares slopes / atol."""


def _failure(reason: str, rhs: _RightHandSide, t: Tensor, detail: str) -> SolverError:
    time = float(t[0]) if rhs.time is None else rhs.time
    if reason == "step underflow" and rhs.dt == 0:
        # torchdiffeq makes no step of one that is not a number.
        reason, detail = "non-finite state", "the slopes are NaN or infinite"
        if rhs.solver.atol < _SMALL:
            detail += f", or beyond what is finite when divided by atol={rhs.solver.atol:g}"
    if rhs.passed_the_end():
        detail = "; ".join(filter(None, (detail, f"past the end of the solve: {_PAST_THE_END}")))
    return SolverError(reason, time, rhs.dt, rhs.statistics.nfe, detail)
