"""The yardstick: the same nets over ``torchdiffeq.odeint_adjoint``, used as its readme says."""

from __future__ import annotations

import torch
import torchdiffeq
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.ode.packing import State


class PlainBlock(nn.Module):
    """An ODE block without any of ours.

    Args:
        field: module called as ``field(t, x)``.
        t_span: start and end time.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: a method of torchdiffeq.
    """

    def __init__(
        self,
        field: nn.Module,
        t_span: tuple[float, float],
        rtol: float = 1e-3,
        atol: float = 1e-3,
        method: str = "dopri5",
    ) -> None:
        super().__init__()
        self.field = field
        self.t_span = t_span
        self.rtol, self.atol, self.method = rtol, atol, method

    def forward(self, x: State, t: Tensor | None = None) -> State:
        """x(t1) from x(t0), or the states at the times ``t``."""
        like = x if isinstance(x, Tensor) else x[0]
        span = torch.tensor(self.t_span, dtype=like.dtype, device=like.device)
        times = span if t is None else t.to(span)
        states: State = torchdiffeq.odeint_adjoint(
            self.field, x, times, rtol=self.rtol, atol=self.atol, method=self.method
        )
        if t is not None:
            return states
        if isinstance(states, Tensor):
            return states[-1]
        return tuple(part[-1] for part in states)


def with_plain_blocks(model: nn.Module, rtol: float = 1e-3, atol: float = 1e-3) -> nn.Module:
    """Replace every ODE block of a model, in place; parameters keep their names."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ODEBlock):
                setattr(module, name, PlainBlock(child.field, child.t_span, rtol, atol))
    return model


class CallCounter:
    """Counts a field's calls while it is active, whoever makes them.

    Attributes:
        calls: how many there were so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        self._fields = [m.field for m in model.modules() if isinstance(m, (PlainBlock, ODEBlock))]
        self._handles = [f.register_forward_pre_hook(self._count) for f in self._fields]

    def _count(self, module: nn.Module, inputs: object) -> None:
        self.calls += 1

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
