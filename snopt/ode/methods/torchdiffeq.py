"""The methods of torchdiffeq, which are asked what they report and which options they take."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS
from typing_extensions import override

from snopt.ode.methods.base import Method, Problem, Time
from snopt.ode.runge_kutta import TABLEAUS, stage_times

NAMES = SOLVERS.keys()
"""Methods that torchdiffeq has."""

_TIMES = {"step_t", "jump_t"}
"""Options that are times."""


class Torchdiffeq(Method):
    """A method of torchdiffeq.

    Args:
        name: its name there.
    """

    def __init__(self, name: str) -> None:
        callbacks = SOLVERS[name].valid_callbacks()
        self.name, self.tableau, self.options = name, TABLEAUS.get(name), _options_of(name)
        self.adaptive = self.fsal = "callback_accept_step" in callbacks
        # SciPy's methods report nothing, and work on arrays.
        self.reports_steps = self.differentiable = bool(callbacks)

    @override
    def solve(self, problem: Problem) -> Tensor:
        heard = self._heard(problem)
        try:
            states: Tensor = torchdiffeq.odeint(
                heard, problem.y0, problem.times, rtol=problem.rtol, atol=problem.atol,
                method=self.name, options=self._options(problem),
            )  # fmt: skip
        except AssertionError as error:
            if not _raised_by_torchdiffeq(error):
                raise
            message = re.split(r"[:{]", str(error), maxsplit=1)[0].strip()
            raise problem.failure(_reason(message), message) from None
        if isinstance(heard, _Fixed):
            heard.finish()
        if len(states) < len(problem.times):
            # SciPy's word for it is a status, which torchdiffeq does not pass on.
            raise problem.failure("step underflow", "SciPy's solver stopped before the end")
        return states

    def _heard(self, problem: Problem) -> _Heard:
        if self.adaptive:
            return _Adaptive(problem)
        return _Fixed(problem) if self.reports_steps else _Unheard(problem)

    def _options(self, problem: Problem) -> dict[str, Any]:
        options = _in_solver_time(problem.options, problem.sign)
        if not self.adaptive:
            return options
        if problem.norm is not None:
            options["norm"] = problem.norm
        if problem.first_step is not None:
            options["first_step"] = problem.first_step
        if problem.exact_endpoint:
            end = problem.times[-1:]
            for name in _TIMES & options.keys():
                times = options[name].to(end)
                options[name] = times[times < end]
            # A step to the end sees the field just before it, as one to a jump there would.
            options["step_t"] = torch.cat([options.get("step_t", end[:0]), end])
        if problem.times.dtype != torch.float64:
            options.setdefault("dtype", problem.times.dtype)
        return options

    @override
    def stage_times(self, steps: Sequence[Any], index: int, stop: float, like: Tensor) -> Tensor:
        """The very times at which torchdiffeq evaluates: a field may jump right beside them.

        Its rk4 takes the end of a step from its grid, and a method with error control evaluates
        just before it; that evaluation serves the next step as its first stage too.
        """
        assert self.tableau is not None
        step, last = steps[index], index == len(steps) - 1
        if self.name == "heun2":
            return stage_times([step.time], step.dt, self.tableau, like)[0]
        nodes, end = self.tableau.nodes, stop if last else steps[index + 1].time
        times = [end if node == 1.0 else step.time + node * step.dt for node in nodes]
        if not self.adaptive:
            return torch.tensor([*times, step.dt], dtype=like.dtype, device=like.device)
        before = -math.copysign(math.inf, step.dt)
        shared = [node == 1.0 or (node == 0.0 and index > 0) for node in nodes]
        toward = [before if at_an_end else t for t, at_an_end in zip(times, shared, strict=True)]
        row = torch.tensor([*times, step.dt], dtype=like.dtype, device="cpu")
        return torch.nextafter(row, row.new_tensor([*toward, step.dt])).to(like.device)


class _Heard:
    """The field, with the callbacks that torchdiffeq looks for.

    They are methods of a class: set on an object, they would make it part of a cycle, which keeps
    states alive until Python looks for it.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        return self.problem(s, y)


class _Adaptive(_Heard):
    def callback_step(self, s: Time, y: Tensor, ds: Time) -> None:
        self.problem.attempt(s, y, ds)

    def callback_accept_step(self, s: Time, y: Tensor, ds: Time) -> None:
        self.problem.accept(s, y, ds)


class _Fixed(_Heard):
    """Steps are kept whatever they do, so that the beginning of one ends the one before."""

    pending: tuple[Time, Tensor, Time] | None = None

    def callback_step(self, s: Time, y: Tensor, ds: Time) -> None:
        self.finish()
        self.problem.attempt(s, y, ds)
        self.pending = (s, y, ds)

    def finish(self) -> None:
        if self.pending is not None:
            self.problem.accept(*self.pending)
        self.pending = None


class _Unheard(_Heard):
    """Under SciPy's solvers, which report no steps: their evaluations count."""

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        self.problem.count(s)
        return self.problem(s, y)


def _options_of(name: str) -> frozenset[str]:
    taken = {"self", "func", "y0", "rtol", "atol"}
    return frozenset(
        option
        for kind in SOLVERS[name].__mro__
        if "__init__" in vars(kind)
        for option, parameter in inspect.signature(vars(kind)["__init__"]).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and option not in taken
    )


def _in_solver_time(options: Mapping[str, Any], sign: float) -> dict[str, Any]:
    """Torchdiffeq's options for a solve in time ``sign * t``, which always grows."""
    found = dict(options)
    for name in _TIMES:
        times = found.pop(name, None)
        if times is not None:
            # Numbers of Python have more digits than the default dtype.
            if not isinstance(times, Tensor):
                times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
            found[name] = times * sign
    grid: Callable[..., Tensor] | None = found.get("grid_constructor")
    if grid is not None and sign < 0:
        found["grid_constructor"] = lambda function, y0, s: -grid(function, y0, -s)
    return found


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
