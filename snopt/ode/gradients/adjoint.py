"""The adjoint equation, solved backwards beside the state: O(1) memory in the number of steps."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from snopt.ode.gradients.context import SolveContext, vjp
from snopt.ode.gradients.held import drawn
from snopt.ode.gradients.kept import Kept
from snopt.ode.packing import Layout
from snopt.real_numbers import as_complex, as_real


def solved(context: SolveContext, y0: Tensor, t: Tensor) -> Kept:
    """The states alone."""
    held = context.held
    before = None if held is None or held.calm else held.generators()
    states = context.integrate("forward", context.field, y0, t, norm=context.norm)
    if held is None or before is None:
        return Kept(t, states)
    held.calm = not drawn(before, held.generators())
    if not held.calm:
        warnings.warn(
            f"field {type(context.module).__name__} draws random numbers (dropout?) in each "
            "evaluation, other ones in the backward solve, so that "
            f"gradient={context.gradient!r} is not the gradient of what was computed: choose "
            "gradient='checkpoint' or 'direct', or draw them before each solve and set them on "
            "the field",
            stacklevel=2,
        )
    return Kept(t, states)


def backward(
    context: SolveContext,
    kept: Kept,
    inputs: tuple[Tensor, ...],
    cotangent: Tensor,
    *,
    seminorm: bool = False,
) -> tuple[Tensor, ...]:
    """First order in docs/method.md: a' = -F_x^T a backwards, and its integral over F_theta.

    Args:
        context: field and solver.
        kept: the forward solve.
        inputs: whose gradients are wanted beside the initial state's.
        cotangent: of the states.
        seminorm: whether the inputs' adjoints leave the step size alone.
    """
    states = kept.states
    if not bool(torch.isfinite(cotangent).all()):
        # An overflow above the block is no failure of the solve: pass it on, as torch does.
        return tuple(torch.full_like(x, torch.nan) for x in (states[0], *inputs))
    system = _AdjointSystem(context, inputs, states[0], seminorm)
    a = cotangent[-1]
    times = kept.times.tolist()
    for i in range(len(times) - 1, 0, -1):
        a = system.backwards(times[i], times[i - 1], states[i], states[i - 1], a)
        a = a + cotangent[i - 1]
    return (a, *system.gradients)


class _AdjointSystem:
    """The augmented equation of one block, solved interval by interval.

    The parameters' adjoint is part of the state or, with a seminorm and a Runge-Kutta method, is
    summed from the stages of each accepted step with the method's own weights.
    """

    def __init__(
        self, context: SolveContext, parameters: tuple[Tensor, ...], like: Tensor, seminorm: bool
    ) -> None:
        self.context, self.parameters, self.seminorm = context, parameters, seminorm
        self.summed = seminorm and context.solver.integrator.tableau is not None
        self.carried_parameters = () if self.summed else parameters
        shapes = [as_real(p).shape for p in self.carried_parameters]
        self.layout = Layout([like.shape, like.shape, *shapes])
        self.gradients = [torch.zeros_like(p) for p in parameters]
        self.norm = context.norm
        self.stages: list[tuple[Tensor, Tensor]] = []
        self.kept = self.inspected = False

    def backwards(self, start: float, end: float, y: Tensor, y_end: Tensor, a: Tensor) -> Tensor:
        """The adjoint at ``end`` from the adjoint ``a`` at ``start``; adds to the gradients."""
        nodes = self.context.watched(start, end)
        carried = () if self.summed else map(as_real, self.gradients)

        def on_step(time: float, flat: Tensor, dt: float) -> None:
            if self.summed:
                self._add_step(dt)
            if nodes is not None:
                y_now, a_now, *_ = self.layout.unpack(flat)
                nodes.boundary(time, y_now, a_now)

        self.stages.clear()
        self.kept = False
        final = self.context.integrate(
            "backward",
            self,
            self.layout.pack((y, a, *carried)),
            torch.tensor([start, end], dtype=torch.float64, device="cpu"),
            norm=self._norm,
            exact_endpoint=self.summed,
            on_attempt=self._forget_stages if self.summed else None,
            on_step=on_step,
        )[-1]
        _, a_end, *gradients = self.layout.unpack(final)
        if not self.summed:
            self.gradients = list(map(as_complex, gradients, self.parameters))
        if nodes is not None:
            nodes.boundary(end, y_end, a_end)
            nodes.finish()
        return a_end

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        y, a, *_ = self.layout.unpack(flat)
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            slope = self.context.field(t, y)
            if not self.inspected:
                known = (y, *self.parameters)
                # A time of its own: the field may have made a leaf of this one.
                self.context.inspect(slope, known, lambda: self.context.field(t.detach(), y))
                self.inspected = True
        grads = vjp([slope], (y, *self.carried_parameters), [-a], retain=self.summed)
        if self.summed:
            self.stages.append((slope, a))
        return self.layout.pack((slope.detach(), *map(as_real, grads)))

    def _norm(self, flat: Tensor) -> Tensor:
        y, a, *parameters = self.layout.unpack(flat)
        norms = [self.norm(y), self.norm(a)]
        if not self.seminorm:
            norms += [p.square().mean().sqrt() for p in parameters if p.numel()]
        return torch.stack(norms).max()

    def _forget_stages(self) -> None:
        # The first stage is the last one of the step that was kept before, or, after a rejection,
        # the one it had.
        if self.context.solver.integrator.fsal:
            self.stages = [self.stages[-1 if self.kept else 0]]
        else:
            self.stages = []
        self.kept = False

    def _add_step(self, dt: float) -> None:
        self.kept = True
        used = [
            (slope, a * (-weight * dt))
            for weight, (slope, a) in zip(self.context.tableau.weights, self.stages, strict=False)
            if weight != 0.0
        ]
        slopes, cotangents = [slope for slope, _ in used], [a for _, a in used]
        grads = vjp(slopes, self.parameters, cotangents, retain=True)
        if grads:
            torch._foreach_add_(self.gradients, grads)
