"""The layer: ``ODEBlock(field, t_span)`` maps x(t0) to x(t1), or to a trajectory."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Never

import torch
from torch import Tensor, nn

from snopt.errors import SolverError
from snopt.ode.compiled import compiled_step
from snopt.ode.field import FlatField, with_own_times
from snopt.ode.gradients import GRADIENTS, check_gradient, solve, solve_to_end, together
from snopt.ode.gradients.context import Observer, SolveContext
from snopt.ode.gradients.held import Held
from snopt.ode.integrate import OfSolver, Solver
from snopt.ode.joining import Place
from snopt.ode.methods import Method, Statistics, options_of
from snopt.ode.methods.equal_steps import step_grid
from snopt.ode.methods.settings import split_options
from snopt.ode.packing import Layout, State, all_finite, batch_size, checked, is_vector
from snopt.ode.passes import Pass, kind_of_pass
from snopt.ode.runge_kutta import stage_times, step
from snopt.ode.signature import check_names
from snopt.ode.times import span_of, times_of
from snopt.ode.tracing import exporting, transformed

logger = logging.getLogger(__name__)

Answer = Callable[[Pass, int, Place, Tensor], None]
"""Called with every backward pass that is for gradients, and the samples that it answers."""


class ODEBlock(nn.Module):
    """The flow of ``x' = field(t, x)``, a layer like any other.

    Args:
        field: a module called as ``field(t, x)``. t is a scalar tensor of the state's dtype, x a
            tensor or a tuple of tensors. The first dimension of each is the sample; (N,) is one
            number per sample. Treats samples alike and returns x's shape(s) in x's dtype.
        t_span: start and end time; the end may lie before the start.
        method: the name of a method of torchdiffeq, or with ``steps`` also of a row of
            :data:`snopt.ode.runge_kutta.TABLEAUS`; or a :class:`snopt.ode.methods.Method`, such as
            ``Torchode()``.
        rtol: relative tolerance.
        atol: absolute tolerance, in the state's unit. Loosen both to run faster, tighten them for
            better gradients.
        gradient: ``"adjoint"`` and ``"adjoint-seminorm"`` need O(1) memory in the number of steps,
            ``"checkpoint"`` stores one state per step and is exact for the discrete solve,
            ``"direct"`` stores everything and is the fastest if memory allows.
        options: those of torchdiffeq's method, and

            * ``steps``: number of equal steps per interval, without error control;
            * ``max_steps``: attempted steps per output interval after which the solve fails; a
              million by default, with error control;
            * ``warm_start``: start each adaptive solve with the longest step that the last one
              accepted, instead of searching for a first step; training and evaluation each
              remember their own (default False);
            * ``compile``: compile the Runge-Kutta step (needs ``steps``; default False). The first
              call takes a minute or so, which pays off in long runs;
            * ``on_failure``: ``"raise"`` (default), or ``"partial"`` to return the state at the
              last time that was reached, with a warning; a trajectory is raised for either way.

    Attributes:
        nfe_forward: evaluations of the field in forward solves so far.
        nfe_backward: evaluations in backward solves so far, not counting curvature.
        nfe_curvature: evaluations made to measure curvature so far.
        measured: whether the backward passes that run now measure curvature.
        one_sample: whether the field's layers were seen to take a state of shape (N,) as one
            sample; otherwise it is one number for each of N samples.

    Raises:
        ValueError: an argument is outside its range; the message names the range.
        SolverError: from ``forward`` or ``backward()``, when a solve fails.

    Source: Chen et al., Neural Ordinary Differential Equations, 2018; Kidger et al., Hey,
    that's not an ODE, 2021 (seminorm).
    """

    rtol, atol, method, steps, max_steps, options = (OfSolver() for _ in range(6))
    one_sample, asked = False, -1  # asked: samples of the last batch with a gradient to come

    def __init__(
        self,
        field: nn.Module,
        t_span: Sequence[float] = (0.0, 1.0),
        *,
        method: str | Method = "dopri5",
        rtol: float = 1e-3,
        atol: float = 1e-3,
        gradient: str = "adjoint",
        options: Mapping[str, Any] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__()
        if not isinstance(field, nn.Module):
            raise TypeError(
                f"field must be a torch.nn.Module called as field(t, x), got {type(field).__name__}"
            )
        own, passed = split_options(str(method), options_of(method), options, unknown)
        solver = Solver(method, rtol, atol, own.get("steps"), own.get("max_steps"), passed)
        check_gradient(gradient, solver)
        check_names(field)
        self.field = field
        self.t_span = t_span
        self.gradient = gradient
        self.solver = solver
        self.warm_start, self.on_failure = own["warm_start"], own["on_failure"]
        self.compile_step = own["compile"]
        self.nfe_forward = self.nfe_backward = self.nfe_curvature = self.samples = 0
        self.measured = False
        self.observers: weakref.WeakSet[Observer] = weakref.WeakSet()
        self.listeners: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._longest: dict[str, float] = {}
        self._held: Held | None = None
        self._steppers: dict[tuple[object, ...], Callable[[Tensor, Tensor], Tensor]] = {}

    @property
    def t_span(self) -> tuple[float, float]:
        """Start and end time."""
        return self._t_span

    @t_span.setter
    def t_span(self, span: Sequence[float]) -> None:
        self._t_span = span_of(span)

    def forward(self, x: State, t: Tensor | Sequence[float] | None = None) -> State:
        """Solve from ``x``.

        Args:
            x: initial state, a floating-point tensor (N, ...) or a tuple of them.
            t: times of shape (T,), strictly monotone; ``x`` is the state at the first. Without them
                the block solves over ``t_span``.

        Returns:
            x(t1), shaped like ``x``; with ``t`` the trajectory, (T, N, ...), starting with ``x``.

        Raises:
            SolverError: the solve failed.
            TypeError: the state or a slope has a type or dtype that cannot be solved.
            ValueError: the shape or device of the state, a slope or ``t`` is wrong.
        """
        x = checked(x)
        layout, times = Layout.of(x), self._times(t)
        flat = layout.pack(x)
        seen, flat = flat.dtype, self._carried(flat, times)
        context = self._context(layout, flat, seen)
        batch = 0 if exporting() else self.samples_of(x)
        try:
            out = (solve_to_end if t is None else solve)(context, flat, times)
        except SolverError as failure:
            error = failure.blaming(flat)
            if self.on_failure != "partial" or t is not None:
                raise error from None
            out = self._partial(context, flat, times, error)
        # Most batches are as large as the ones before: then there is nothing to learn.
        news = batch != self.samples or batch != self.asked or bool(self.listeners)
        if news and out.requires_grad and not (exporting() or transformed()):
            self.asked = batch
            out.register_hook(partial(self._answered, batch, Place()))
        return layout.unpack(out if out.dtype is seen else out.to(seen))

    def _answered(self, batch: int, place: Place, grad: Tensor) -> None:
        """A backward pass comes by: N is what it answers, if it is for gradients."""
        kind = Pass.INNER if self.measured else kind_of_pass(self.field.parameters())
        if kind is not Pass.INNER:
            self.samples = batch
            for listener in self.listeners:
                listener(kind, batch, place, grad)

    def _carried(self, flat: Tensor, times: Tensor) -> Tensor:
        """The state in the dtype that the solver adds steps in."""
        if flat.element_size() >= 4:
            return flat
        # Steps are added in float32. The parameters' gradients are sums in their own precision.
        limit = int(0.25 / torch.finfo(flat.dtype).eps)
        if self.solver.steps is None or self.solver.steps * (len(times) - 1) > limit:
            raise TypeError(
                f"a state of {flat.dtype} is too coarse for error control and for more than "
                f"{limit} steps: solve in float32, block(x.float()) with field.float(), inside "
                "torch.autocast if its layers shall run in half precision; or choose "
                f"options={{'steps': ...}} up to {limit}"
            )
        return flat.float()

    def samples_of(self, state: State, whole: bool = False) -> int:
        """Samples behind a state.

        Args:
            state: one tensor or several.
            whole: whether the field's layers were seen to take their inputs for single samples.
        """
        if whole and is_vector(state):
            self.one_sample, self.samples = True, 1
        if isinstance(state, Tensor) and state.ndim > 1:  # nearly always
            return state.shape[0]
        return 1 if self.one_sample and is_vector(state) else batch_size(state)

    @property
    def can_unroll(self) -> bool:
        """Whether this call may be part of a compiled region: :meth:`unroll` instead of a call.

        That takes ``options={"compile": True}``, direct backpropagation in training, and nobody who
        watches the solve.
        """
        training = self.training and torch.is_grad_enabled()
        plain = GRADIENTS[self.gradient].through_solver and not self.observers
        return training and self.compile_step and plain

    def grid(self, like: Tensor) -> Tensor:
        """Times of the stages of the equal steps over ``t_span``: a row for each step.

        Args:
            like: a tensor of the state's dtype and device.
        """
        ((times, dt, end),) = step_grid(self._times(None), self.solver.steps or 1)
        return stage_times(times, dt, self.solver.tableau, like, end)

    def unroll(self, x: Tensor, grid: Tensor) -> Tensor:
        """x(t1) as a plain differentiable function, for a compiled region of the caller's own.

        Nothing is counted, checked or watched: call :meth:`record_external_solves` outside the
        region.

        Args:
            x: initial state, one tensor (N, ...).
            grid: what :meth:`grid` returned.
        """
        tableau = self.solver.tableau
        function = FlatField(self.field, Layout(None), x)
        for row in grid.unbind():
            x = step(function, row, x, tableau)
        return x

    def record_external_solves(self, x: Tensor, solves: int) -> None:
        """Count solves by :meth:`unroll`, and check what they ended in.

        Args:
            x: the state after the last of them.
            solves: how many there were.

        Raises:
            SolverError: the state is not finite.
        """
        steps = self.solver.steps or 1
        nfe = steps * len(self.solver.tableau.nodes)
        self._count("forward", Statistics(solves * nfe))
        self.samples = self.samples_of(x)
        if not all_finite(x):
            dt = (self._t_span[1] - self._t_span[0]) / steps
            raise SolverError("non-finite state", self._t_span[1] - dt, dt, solves * nfe)

    def _times(self, t: Tensor | Sequence[float] | None) -> Tensor:
        if t is not None:
            return times_of(t)
        return torch.tensor(self._t_span, dtype=torch.float64, device="cpu")

    def _context(self, layout: Layout, flat: Tensor, seen: torch.dtype) -> SolveContext:
        check_gradient(self.gradient, self.solver)  # both may have been replaced
        function = FlatField(self.field, layout, flat, seen)
        watched = bool(self.observers) and torch.is_grad_enabled()
        observer = together(self.observers) if watched else None
        return SolveContext(
            field=with_own_times(function) if self.solver.integrator.per_sample else function,
            module=self.field,
            layout=layout,
            solver=self.solver,
            gradient=self.gradient,
            count=self._count,
            first_step=self._first_step,
            hold=self._hold,
            stepper=self._compiled(function) if self.compile_step else None,
            observer=observer,
        )

    def _hold(self, device: torch.device) -> Held:
        """What the field holds now: that of the last solve, if nothing has changed since."""
        if self._held is None or not self._held.current(self.field, device):
            self._held = Held(self.field, device)
        return self._held

    def _compiled(self, function: FlatField) -> Callable[[Tensor, Tensor], Tensor]:
        """A compiled step; one for all states of one tensor, one for each set of parts' shapes."""
        tableau = self.solver.tableau
        key = tableau, *function.key
        if key not in self._steppers:
            self._steppers[key] = compiled_step(function, tableau)
        return self._steppers[key]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled anew for every number
    def _count(self, direction: str, statistics: Statistics) -> None:
        name = f"nfe_{direction}"
        setattr(self, name, getattr(self, name) + statistics.nfe)
        if self.warm_start and statistics.longest > 0:
            self._longest[self._memory(direction)] = statistics.longest

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Backward solves inside are curvature's: counted there, and no memory of them is kept."""
        evaluations, longest = self.nfe_backward, dict(self._longest)
        outer, self.measured = self.measured, True
        try:
            yield
        finally:
            self.measured = outer
            self.nfe_curvature += self.nfe_backward - evaluations
            self.nfe_backward, self._longest = evaluations, longest

    def _first_step(self, direction: str) -> float | None:
        if not (self.warm_start and self.solver.adaptive):
            return None
        return self._longest.get(self._memory(direction))

    def _memory(self, direction: str) -> str:
        # Evaluation remembers its own steps, so that it leaves no trace in training.
        return direction if self.training else f"{direction} in evaluation"

    def _partial(
        self, context: SolveContext, flat: Tensor, times: Tensor, error: SolverError
    ) -> Tensor:
        """The state reached, solved for anew: gradient methods keep nothing of a failed solve."""
        reached = error.time if context.solver.adaptive else self._last_finite(context, flat, times)
        logger.warning("solve stopped early, its state at t = %g is used: %s", reached, error)
        ends = times.new_tensor([float(times[0]), reached])
        return flat.clone() if ends[0] == ends[1] else solve_to_end(context, flat, ends)

    def _last_finite(self, context: SolveContext, flat: Tensor, times: Tensor) -> float:
        """Where fixed steps, which go on whatever happens, were still finite."""
        reached = float(times[0])

        def on_step(time: float, y: Tensor, dt: float) -> None:
            nonlocal reached
            if all_finite(y):
                reached = time

        with torch.no_grad(), contextlib.suppress(SolverError):
            context.integrate("forward", context.field, flat, times, on_step=on_step)
        return reached

    def solver_state(self) -> dict[str, Any]:
        """Counters and warm start as plain numbers, for checkpoints; not in ``state_dict``."""
        return {
            "nfe_forward": self.nfe_forward,
            "nfe_backward": self.nfe_backward,
            "nfe_curvature": self.nfe_curvature,
            "longest": dict(self._longest),
            "t_span": list(self._t_span),
            "one_sample": self.one_sample,
        }

    def load_solver_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`solver_state` returned."""
        self.nfe_forward = int(state["nfe_forward"])
        self.nfe_backward = int(state["nfe_backward"])
        self.nfe_curvature = int(state["nfe_curvature"])
        self._longest = {str(key): float(value) for key, value in state["longest"].items()}
        self.t_span = state["t_span"]
        self.one_sample = bool(state.get("one_sample", False))  # older states lack it

    def __getstate__(self) -> dict[str, Any]:
        # A compiled function and a listening optimizer stay behind when the block is pickled.
        return {**self.__dict__, "_steppers": {}, "_held": None, "observers": (), "listeners": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.observers, self.listeners = weakref.WeakSet(), weakref.WeakSet()

    def extra_repr(self) -> str:
        """What ``print`` shows beside the field."""
        s = self.solver
        how = f"steps={s.steps}" if s.steps is not None else f"rtol={s.rtol:g}, atol={s.atol:g}"
        return f"t_span={self._t_span}, method={str(s.method)!r}, {how}, gradient={self.gradient!r}"


def blocks(model: nn.Module) -> dict[str, ODEBlock]:
    """Every ODE block inside ``model`` (and ``model`` itself), by module name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, ODEBlock)}


def solver_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Counters, warm start and interval of every block, by module name, for checkpoints."""
    return {name: block.solver_state() for name, block in blocks(model).items()}


def load_solver_state(model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what :func:`solver_state` returned.

    Raises:
        KeyError: the state was made by a model with other blocks.
    """
    own = blocks(model)
    if own.keys() != state.keys():
        raise KeyError(f"solver state of blocks {sorted(state)}, but the model has {sorted(own)}")
    for name, block in own.items():
        block.load_solver_state(state[name])
