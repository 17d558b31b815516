"""torchode's methods, whose samples take steps of their own.

Source: Lienen and Günnemann, torchode: A Parallel ODE Solver for PyTorch, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from snopt.arguments import choose
from snopt.ode.methods.base import Method, Problem
from snopt.ode.runge_kutta import Tableau

_STEP_METHODS = {"dopri5": "Dopri5", "tsit5": "Tsit5", "heun": "Heun"}


class Torchode(Method):
    """A method of torchode: every sample of a batch takes steps of its own.

    The field is called with t of shape (N,), a time for each sample. A tuple of tensors, a state of
    one dimension and the backward solve of an adjoint are solved as one, by steps that all samples
    share. ``gradient="checkpoint"`` repeats each sample's own steps: its gradient is that of
    torchode's ``AutoDiffAdjoint`` with ``backprop_through_step_size_control=False``.

    Args:
        name: ``"dopri5"``, ``"tsit5"`` or ``"heun"``.
        controller: of the step size, made by ``controller(atol, rtol, term=..., norm=...)``;
            ``torchode.IntegralController`` by default.

    Raises:
        ImportError: torchode is not installed.
        ValueError: there is no such method.
    """

    adaptive = True
    differentiable = False  # the states it reports are no part of a graph's way
    per_sample = True

    def __init__(self, name: str = "dopri5", controller: Callable[..., Any] | None = None) -> None:
        choose("name", name, _STEP_METHODS)
        self.name, self.controller = name, controller
        table = getattr(_torchode(), _STEP_METHODS[name]).TABLEAU
        self.fsal = table.fsal
        # The last stage of such a method has no weight: it is the next step's first.
        stages = table.n_stages - self.fsal
        rows = table.a.tolist()
        self.tableau = Tableau(
            tuple(table.c.tolist()[:stages]),
            tuple(tuple(rows[i][:i]) for i in range(1, stages)),
            tuple(table.b.tolist()[:stages]),
        )

    @override
    def solve(self, problem: Problem) -> Tensor:
        torchode, y0, times = _torchode(), problem.y0, problem.times
        samples = len(y0) if y0.ndim > 1 else 1
        flat = y0.reshape(samples, -1)

        def slope(s: Tensor, y: Tensor) -> Tensor:
            return problem(_own(s, y0).to(y.dtype), y.reshape(y0.shape)).reshape(y.shape)

        term = torchode.ODETerm(slope, with_stats=False)
        norm = {} if y0.ndim > 1 or problem.norm is None else {"norm": _as_one(problem)}
        make = self.controller or torchode.IntegralController
        controller = make(problem.atol, problem.rtol, term=term, **norm).to(y0.device)
        steps = getattr(torchode, _STEP_METHODS[self.name])(term)
        solver = torchode.AutoDiffAdjoint(_Steps(steps, problem), _Control(controller, problem))
        first = problem.first_step
        solution = solver.solve(
            torchode.InitialValueProblem(flat, t_eval=times.expand(samples, -1)),
            term,
            dt0=None if first is None else times.new_full((samples,), first),
        )
        failed = solution.status != torchode.Status.SUCCESS.value
        if bool(failed.any()):
            status = torchode.Status(int(solution.status[failed][0]))
            reason = _REASONS.get(status.name, "solver failure")
            raise problem.failure(reason, f"{int(failed.sum())} of {samples} samples")
        states: Tensor = solution.ys.transpose(0, 1).reshape(len(times), *y0.shape)
        return states


_REASONS = {
    "REACHED_DT_MIN": "step underflow",
    "REACHED_MAX_STEPS": "too many steps",
    "INFINITE_NORM": "non-finite state",
}


class _Told:
    """A part of torchode's that tells the problem what it does."""

    def __init__(self, part: Any, problem: Problem) -> None:
        self.part, self.problem = part, problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


class _Steps(_Told):
    def step(
        self,
        term: Any,
        running: Tensor,
        y0: Tensor,
        t0: Tensor,
        dt: Tensor,
        *rest: Any,
        **more: Any,
    ) -> Any:
        problem = self.problem
        if bool((running & (t0 + dt == t0)).any()):
            raise problem.failure("step underflow")
        problem.attempt(t0, y0, dt)
        return self.part.step(term, running, y0, t0, dt, *rest, **more)


class _Control(_Told):
    def adapt_step_size(self, t0: Tensor, dt: Tensor, y0: Tensor, *rest: Any) -> Any:
        problem, found = self.problem, self.part.adapt_step_size(t0, dt, y0, *rest)
        kept = found[0] & (t0 < problem.times[-1])
        if bool(kept.any()):
            like = problem.y0
            length = torch.where(kept, dt, 0.0)
            problem.accept(_own(t0, like), y0.reshape(like.shape), _own(length, like))
        return found


def _own(s: Tensor, y0: Tensor) -> Tensor:
    """A time or length of each sample, or of all in one."""
    return s if y0.ndim > 1 else s[0]


def _as_one(problem: Problem) -> Callable[[Tensor], Tensor]:
    norm, shape = problem.norm, problem.y0.shape
    assert norm is not None
    return lambda y: norm(y.reshape(shape)).reshape(1)


def _torchode() -> Any:
    try:
        import torchode
    except ImportError as error:
        raise ImportError(
            "snopt.ode.methods.torchode needs torchode: pip install 'snopt[torchode]'"
        ) from error
    return torchode
