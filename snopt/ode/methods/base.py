"""What a method of integration must do, and what it can be asked for.

A method solves one :class:`Problem`. It does four things: it evaluates the field by calling the
problem, tells of its steps (``attempt``, ``accept``), begins with ``first_step`` if there is one,
and returns the states at all ``times``. Everything else of this library follows from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snopt.errors import SolverError
from snopt.ode.runge_kutta import Field, Tableau
from snopt.ode.times import time_dtype

Time = float | Tensor
"""A time or a length: one for all samples, or a tensor (N,) with one for each."""

OnStep = Callable[[Any, Tensor, Any], None]
"""Called once a step has been taken and kept, with (start time, start state, signed length)."""


@dataclass
class Statistics:
    """What one solve did.

    Attributes:
        nfe: evaluations of the right-hand side.
        longest: the longest step that was proposed and kept, 0 if none was reported.
    """

    nfe: int = 0
    longest: float = 0.0


class Problem:
    """One solve, as a method sees it: in a time s of its own, which always increases.

    The field's time is ``sign * s``. Times and lengths that a method passes are numbers or scalar
    tensors, or of shape (N,) if every sample has its own.

    Args:
        function: the right-hand side over one tensor, in the field's time.
        y0: initial state of any shape.
        t: strictly monotone times, shape (T,), float64 on the CPU, in the field's time.
        rtol: relative tolerance.
        atol: absolute tolerance.
        options: those that the method takes, in the field's time.
        limit: steps tried before the solve is given up.
        norm: error norm of the state, or ``None`` for the method's own.
        first_step: length of the first step, or ``None`` to search for it.
        exact_endpoint: whether to step exactly onto the last time instead of interpolating.
        on_attempt: called before the stages of every step that is tried.
        on_step: called for every accepted step.

    Attributes:
        times: s at which states are wanted, (T,), increasing, on the state's device.
        statistics: what the solve did so far.
    """

    def __init__(
        self,
        function: Field,
        y0: Tensor,
        t: Tensor,
        *,
        rtol: float,
        atol: float,
        options: Mapping[str, Any],
        limit: float,
        norm: Callable[[Tensor], Tensor] | None = None,
        first_step: float | None = None,
        exact_endpoint: bool = False,
        on_attempt: Callable[[], None] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.function, self.y0, self.t = function, y0, t
        self.rtol, self.atol, self.options, self.limit = rtol, atol, options, limit
        self.norm, self.first_step, self.exact_endpoint = norm, first_step, exact_endpoint
        self.on_attempt, self.on_step = on_attempt, on_step
        self.sign = 1.0 if t[-1] > t[0] else -1.0
        self.end = float(t[-1]) * self.sign
        self.times = (t * self.sign).to(time_dtype(y0.device)).to(y0.device)
        self.statistics = Statistics()
        self._last: Tensor | None = None
        self._tried = 0
        self._time: float | None = None
        self._dt: float | None = None

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        """The slope dy/ds at (s, y)."""
        if self.exact_endpoint and self.statistics.nfe == 1:
            # The search for the first step looks ahead, maybe past the end.
            s = s.clamp(max=self.end)
        self._last = s
        self.statistics.nfe += 1
        return self.function(s, y) if self.sign > 0 else -self.function(-s, y)

    def forwards(self, t: Tensor, y: Tensor) -> Tensor:
        """The function itself, at its own time."""
        self.statistics.nfe += 1
        return self.function(t, y)

    def attempt(self, s: Time, y: Tensor, ds: Time) -> None:
        """The stages of a step from (s, y) of length ds come next.

        Raises:
            SolverError: too many steps were tried.
        """
        self._time, self._dt = _least(s) * self.sign, _most(ds) * self.sign
        self.count()
        if self.on_attempt is not None:
            self.on_attempt()

    def count(self, s: Time | None = None) -> None:
        """Count one try, at the time ``s`` where no step is known.

        Raises:
            SolverError: there were too many.
        """
        if s is not None:
            self._time = _least(s) * self.sign
        self._tried += 1
        if self._tried > self.limit:
            raise self.failure("too many steps", f"limit {self.limit:g}")

    def accept(self, s: Time, y: Tensor, ds: Time) -> None:
        """The step that was tried last is kept; its stages have been evaluated.

        Args:
            s: where it began.
            y: the state there; with a graph, the very tensor that the step was taken from.
            ds: its length; if every sample has its own, 0 for samples that take no step.
        """
        # The length that was proposed, before the step was cut to land on an output time.
        self.statistics.longest = max(self.statistics.longest, abs(self._dt or 0.0))
        if self.on_step is not None:
            self.on_step(_plain(s) * self.sign, y, _plain(ds) * self.sign)

    def failure(self, reason: str, detail: str = "") -> SolverError:
        """The error to raise if a solve cannot go on.

        Args:
            reason: one of those of :class:`snopt.SolverError`.
            detail: what else is known.
        """
        time = float(self.t[0]) if self._time is None else self._time
        if reason == "step underflow" and self._dt == 0:
            # torchdiffeq makes no step of one that is not a number.
            reason, detail = "non-finite state", "the slopes are NaN or infinite"
            if self.atol < _SMALL:
                detail += f", or beyond what is finite when divided by atol={self.atol:g}"
        if self._passed_the_end():
            past = f"past the end of the solve: {_PAST_THE_END}"
            detail = "; ".join(filter(None, (detail, past)))
        return SolverError(reason, time, self._dt, self.statistics.nfe, detail)

    def explain(self, error: Exception) -> None:
        """Add to an error of the field's own what its author may not expect."""
        if self._passed_the_end():
            error.add_note(f"The field was called past the end of the solve: {_PAST_THE_END}.")

    def _passed_the_end(self) -> bool:
        """Whether the last evaluation was at a time after the last one asked for."""
        return self._last is not None and _most(self._last) > self.end + 1e-6 * abs(self.end)


_PAST_THE_END = (
    "an adaptive solve steps past it and interpolates, unless gradient='direct' or 'checkpoint', "
    "which land on it"
)

_SMALL = 1e-15
"""Tolerances below it may be what overflows: the search for a first step squares slopes / atol."""


def _plain(x: Time) -> Time:
    if not isinstance(x, Tensor):
        return x
    return float(x.detach()) if x.ndim == 0 else x.detach()


def _least(x: Time) -> float:
    return float(x.detach().min()) if isinstance(x, Tensor) else x


def _most(x: Time) -> float:
    return float(x.detach().max()) if isinstance(x, Tensor) else x


class Method(ABC):
    """A way to solve initial value problems, for ``ODEBlock(method=...)``.

    A subclass needs ``name`` and :meth:`solve`. The attributes say what else it can do.

    Attributes:
        name: what messages call it.
        adaptive: whether it chooses the lengths of its steps by the tolerances.
        tableau: its coefficients if every step is the explicit Runge-Kutta step of (t, dt, y), so
            that ``gradient="checkpoint"`` can repeat it; otherwise ``None``.
        fsal: "first same as last": whether a step's first slope is the last one of the step before.
        reports_steps: whether it calls ``attempt`` and ``accept``. Otherwise no curvature of the
            field can be measured.
        differentiable: whether its operations and the states it reports have a graph, so that
            ``gradient="direct"`` goes through them.
        per_sample: whether samples may be at different times. The field is then called with t of
            shape (N,).
        options: names of the options it takes.
    """

    name: str
    adaptive: bool = False
    tableau: Tableau | None = None
    fsal: bool = False
    reports_steps: bool = True
    differentiable: bool = True
    per_sample: ClassVar[bool] = False
    options: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def solve(self, problem: Problem) -> Tensor:
        """The states at ``problem.times``, ``(T, *y0.shape)``, from ``problem.y0``.

        Raises:
            SolverError: made by :meth:`Problem.failure`.
        """

    def stage_times(self, steps: Sequence[Any], index: int, stop: float, like: Tensor) -> Tensor:
        """The times at which a step's stages were evaluated; asked of methods with a tableau.

        Args:
            steps: the accepted steps of an interval, each with its start ``time`` and signed
                length ``dt``.
            index: which of them.
            stop: the interval's end.
            like: a tensor of the state's dtype and device.

        Returns:
            Stage times and length in the field's time, (stages + 1,), or (stages + 1, N).
        """
        assert self.tableau is not None
        step = steps[index]
        dtype, device = time_dtype(like.device), like.device
        time, dt = (torch.as_tensor(x, dtype=dtype, device=device) for x in (step.time, step.dt))
        return torch.stack([*(time + node * dt for node in self.tableau.nodes), dt]).to(like)
