"""The end of the integration interval as a decision variable, optimised along with the weights.

With T = |t1 - t0| and a penalty (c/2) T² on long integration, the loss's derivatives in T are
Q_T = Φ_xᵀ F(T, x_T) + c T and, with Φ_xx ≈ Φ_x Φ_xᵀ, Q_TT = (Φ_xᵀ F)² + c and
Q_Tθ = (Φ_xᵀ F) Q_θᵀ: one field evaluation beside the backward solve gives them all.

Source: Liu, Chen, Theodorou, "Second-Order Neural ODE Optimizer", NeurIPS 2021, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snopt.arguments import instance_of
from snopt.curvature.processes import Processes
from snopt.ode.block import ODEBlock
from snopt.ode.packing import batch_size
from snopt.ode.passes import Pass, current_pass, kind_of_pass

RULES = ("feedback", "first_order", "fixed")


class HorizonUpdate(NamedTuple):
    """One entry of the trace.

    Attributes:
        step: optimizer steps until then.
        T: the horizon after the update.
        q_t: averaged Q_T that the update used.
        q_tt: averaged Q_TT.
        open: the part of the update that answers Q_T, before the floor.
        feedback: the part that answers the optimizer's change of the parameters.
    """

    step: int
    T: float
    q_t: float
    q_tt: float
    open: float
    feedback: float


class Horizon:
    """Moves the end time of an ODE block while any optimizer trains the weights.

    There is nothing to call in the training loop::

        horizon = Horizon(block, optimizer, "feedback")

    It has hooks on the block's output (for Φ_x) and on the optimizer's steps. Each backward pass
    then costs one more evaluation of the field, which the block's counters leave out. Copies of
    the block have no hooks.

    Args:
        block: a block of which the model uses x(t1); calls with explicit times are not observed.
        optimizer: the optimizer of the block's parameters; it must be stepped once per update.
        rule: ``"feedback"``: δT = -lr (Q_T + Q_Tθ δθ) / Q_TT, where δθ is the optimizer's last
            step; ``"first_order"``: δT = -lr Q_T; ``"fixed"``: T stays, Q_T and Q_TT are traced.
        lr: step size η of T; 0.1 in the paper.
        penalty: c of the penalty (c/2) T²; 4e-4 to 6e-4 in the paper.
        every: optimizer steps between updates of T; 50 to 100 in the paper.
        average: decay of the moving averages of Q_T and Q_TT, which are bias-corrected.
        floor: T never falls below it.
        max_change: largest |δT| of one update; None for no limit, as in the paper.
        grad_scale: returns the factor on the loss; ``scaler.get_scale`` with a ``GradScaler``.
        process_group: the processes that average their gradients, as for :class:`~snopt.SNOpt`.

    Attributes:
        trace: every update so far.
    """

    def __init__(
        self,
        block: ODEBlock,
        optimizer: torch.optim.Optimizer,
        rule: str = "feedback",
        *,
        lr: float = 0.1,
        penalty: float = 4e-4,
        every: int = 50,
        average: float = 0.99,
        floor: float = 0.01,
        max_change: float | None = None,
        grad_scale: Callable[[], float] | None = None,
        process_group: Any = None,
    ) -> None:
        instance_of(ODEBlock, block)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}; choose one of {', '.join(RULES)}")
        for name, value, valid, allowed in (
            ("lr", lr, lr > 0, "a number > 0"),
            ("penalty", penalty, penalty >= 0, "a number >= 0"),
            ("every", every, every >= 1, "a number of steps >= 1"),
            ("average", average, 0 <= average < 1, "a decay in [0, 1)"),
            ("floor", floor, floor > 0, "a time > 0"),
            ("max_change", max_change, max_change is None or max_change > 0, "a time > 0, or None"),
        ):
            if not valid:
                raise ValueError(f"{name}={value!r}; expected {allowed}")
        self.block, self.rule, self.lr, self.penalty = block, rule, lr, penalty
        self.every, self.average, self.floor, self.max_change = every, average, floor, max_change
        self.grad_scale = grad_scale
        self._processes = Processes(block.field.parameters(), process_group)
        if floor > self.T:
            raise ValueError(f"floor={floor} is above the block's horizon T={self.T}")
        self.steps = self.observed = 0
        self.trace: list[HorizonUpdate] = []
        self._means = torch.zeros(3)  # of Q_T, Q_TT and 1, which corrects for the start at zero
        self._slope: Tensor | None = None
        self._before: list[Tensor] = []
        self._stepping = self._closure = False
        self._kind, self._number = Pass.INNER, -1
        self._groups = optimizer.param_groups
        self._handles = [
            block.register_forward_hook(self._after_forward, with_kwargs=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def T(self) -> float:
        """The horizon |t1 - t0|."""
        start, end = self.block.t_span
        return abs(end - start)

    @T.setter
    def T(self, value: float) -> None:
        start, end = self.block.t_span
        self.block.t_span = (start, start + value if end > start else start - value)

    def cost(self) -> float:
        """The penalty (c/2) T²: T minimises the loss plus this."""
        return 0.5 * self.penalty * self.T**2

    def diagnostics(self) -> dict[str, float]:
        """T and the averaged derivatives, for logging (synchronises with the device)."""
        q_t, q_tt = self._averages()
        return {"horizon/T": self.T, "horizon/q_t": q_t, "horizon/q_tt": q_tt}

    def discard(self) -> None:
        """Forget the backward passes since the last step, for a batch that is left out."""
        self._slope, self._before, self._stepping = None, [], False

    def __deepcopy__(self, memo: Any) -> Horizon:
        # The block's hook leads here: a copy of the model must not take a second horizon along.
        return self

    def remove(self) -> None:
        """Stop listening; T stays where it is."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """T, the averages and the trace."""
        return {
            "T": self.T,
            "steps": self.steps,
            "observed": self.observed,
            "means": self._means,
            "trace": [tuple(entry) for entry in self.trace],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned; sets the block's ``t_span``."""
        self.T = float(state["T"])
        self.steps, self.observed = int(state["steps"]), int(state["observed"])
        self._means = state["means"]
        self.trace = [HorizonUpdate(*entry) for entry in state["trace"]]

    def _after_forward(
        self, block: ODEBlock, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Send the block's output through an identity whose backward pass sees Φ_x."""
        if block is not self.block:
            return None
        if len(args) > 1 or kwargs.get("t") is not None:
            return None
        parts = (output,) if isinstance(output, Tensor) else tuple(output)
        if not torch.is_grad_enabled() or not any(part.requires_grad for part in parts):
            return None
        seen: tuple[Tensor, ...] = _Terminal.apply(self, *parts)  # type: ignore[no-untyped-call]
        return seen[0] if isinstance(output, Tensor) else seen

    def observe(self, state: tuple[Tensor, ...], phi_x: tuple[Tensor, ...]) -> None:
        """Add one backward pass's Φ_xᵀ F, the derivative of the loss with respect to T.

        Args:
            state: parts of x(t1).
            phi_x: gradients of the loss with respect to them, same shapes.
        """
        if self.block.measured or (self._stepping and not self._closure):
            # Curvature's backward passes, and those by which an optimizer differentiates the
            # gradient again, answer other cotangents than the loss's.
            return
        kind = kind_of_pass(self._parameters())
        if kind is Pass.INNER or (kind is Pass.GRADIENTS and self._kind is Pass.LOSS):
            return
        another = kind is Pass.LOSS and current_pass() != self._number
        if another and (self._kind is Pass.GRADIENTS or self._thrown_away()):
            self._slope = None  # of a gradient that was returned, or has been thrown away
        self._kind, self._number = kind, current_pass()
        start, end = self.block.t_span
        time = torch.tensor(end, dtype=state[0].dtype, device=state[0].device)
        if self.block.solver.integrator.per_sample:
            time = time.expand(batch_size(state))
        with torch.no_grad():
            field = self.block.field(time, state[0] if len(state) == 1 else state)
            parts = (field,) if isinstance(field, Tensor) else field
            slope = torch.stack([(g * f).sum() for g, f in zip(phi_x, parts, strict=True)]).sum()
        slope = slope if end > start else -slope
        # Backward passes before a step accumulate, as gradients do; those of a closure that the
        # optimizer calls again and again replace each other.
        if self._slope is not None and not self._stepping:
            slope = slope + self._slope
        self._slope = slope

    def _thrown_away(self) -> bool:
        """Whether the field's gradient has been dropped or zeroed, before this pass reaches it."""
        grads = [p.grad for p in self.block.field.parameters() if p.requires_grad]
        return bool(grads) and not any(g is not None and bool(g.any()) for g in grads)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self._groups for p in group["params"])

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepping = True
        # The optimizer itself is the first of its arguments.
        self._closure = kwargs.get("closure", args[1] if len(args) > 1 else None) is not None
        if self.rule == "feedback" and (self.steps + 1) % self.every == 0:
            self._before = [p.detach().clone() for p in self.block.field.parameters()]

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepping = False
        self.steps += 1
        slope, self._slope, self._kind = self._slope, None, Pass.INNER
        if slope is not None:
            slope = self._accumulate(slope)
        if self.steps % self.every:
            return
        if self.observed == 0:
            raise RuntimeError(
                f"no gradient reached x(t1) of the block in {self.every} steps; the horizon needs "
                "a model that calls block(x) without times"
            )
        self._update(slope)

    def _accumulate(self, slope: Tensor) -> Tensor:
        """Φ_xᵀ F, unscaled and averaged over ranks, joins the moving averages."""
        if self.grad_scale is not None:
            slope = slope / self.grad_scale()
        self._processes.warn_if_unsure()
        if self._processes.size > 1:
            self._processes.add_up(slope)
            slope = slope / self._processes.size
        finite = torch.isfinite(slope)  # not where a scaled loss overflows; no wait for the device
        slope = torch.where(finite, slope, 0.0)
        new = torch.stack(
            [slope + self.penalty * self.T, slope.square() + self.penalty, torch.ones_like(slope)]
        )
        old = self._means.to(slope)
        self._means = torch.where(finite, self.average * old + (1 - self.average) * new, old)
        self.observed += 1
        return slope

    def _averages(self) -> tuple[float, float]:
        q_t, q_tt, weight = self._means.tolist()
        return (q_t / weight, q_tt / weight) if weight > 0 else (0.0, 0.0)

    def _update(self, slope: Tensor | None) -> None:
        q_t, q_tt = self._averages()
        opened = feedback = 0.0
        if self.rule == "first_order":
            opened = -self.lr * q_t
        elif self.rule == "feedback" and q_tt > 0:  # zero only without a penalty and a gradient
            opened = -self.lr * q_t / q_tt
            feedback = -self.lr * self._cross_term(slope) / q_tt
        change = opened + feedback
        if self.max_change is not None:
            change = min(max(change, -self.max_change), self.max_change)
        if self.rule != "fixed":
            self.T = max(self.T + change, self.floor)
        self.trace.append(HorizonUpdate(self.steps, self.T, q_t, q_tt, opened, feedback))

    def _cross_term(self, slope: Tensor | None) -> float:
        """Q_Tθ δθ = (Φ_xᵀ F) Q_θᵀ δθ."""
        before, self._before = self._before, []
        pairs = [
            (p.grad * (p.detach() - old)).sum()
            for p, old in zip(self.block.field.parameters(), before, strict=True)
            if p.grad is not None
        ]
        if slope is None or not pairs:
            return 0.0
        found: float = (slope * torch.stack(pairs).sum()).item()
        return found if math.isfinite(found) else 0.0  # such gradients tell nothing


class _Terminal(torch.autograd.Function):
    """The identity on x(t1); its backward pass shows Φ_x to the horizon."""

    @staticmethod
    def forward(ctx: Any, horizon: Horizon, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.horizon = horizon
        ctx.save_for_backward(*parts)
        # Copies: views would forbid in-place layers behind the block.
        return tuple(part.clone() for part in parts)

    @staticmethod
    def backward(ctx: Any, *phi_x: Tensor) -> tuple[Tensor | None, ...]:
        ctx.horizon.observe(ctx.saved_tensors, phi_x)
        return None, *phi_x
