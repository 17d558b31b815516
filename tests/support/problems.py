"""Small float64 models that several tests share, and a tight solve to hold them against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snopt import ODEBlock
from tests.support import reference

GRADIENTS = ("adjoint", "adjoint-seminorm", "checkpoint", "direct")
SOLVERS: dict[str, dict[str, Any]] = {
    "dopri5": {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8},
    "bosh3": {"method": "bosh3", "rtol": 1e-7, "atol": 1e-7},
    "rk4": {"method": "rk4", "options": {"step_size": 0.04}},
    "midpoint": {"method": "midpoint", "options": {"step_size": 0.004}},
    "rk4-steps": {"method": "rk4", "options": {"steps": 40}},
    "dopri5-steps": {"method": "dopri5", "options": {"steps": 20}},
}
#: Where nothing is compared with the exact flow.
COARSE: dict[str, dict[str, Any]] = {
    "dopri5": {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4},
    "rk4": {"method": "rk4", "options": {"step_size": 0.25}},
    "rk4-steps": {"method": "rk4", "options": {"steps": 4}},
}


class Field(nn.Module):
    """A two-layer field that depends on time: (N, 3) -> (N, 3)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.outer = nn.Linear(width, 3, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        time = t.expand(x.shape[0], 1)
        return self.outer(torch.tanh(self.inner(torch.cat([x, time], dim=1))))


def field(seed: int = 0, width: int = 6) -> Field:
    torch.manual_seed(seed)
    return Field(width).double()


def data(count: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(count, 3, generator=generator, dtype=torch.float64)


def batch(count: int = 7, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Inputs and targets of :func:`model`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(count, 2, generator=generator, dtype=torch.float64)


def squares(y: Tensor) -> Callable[[Tensor], Tensor]:
    """A mean loss over samples."""
    return lambda output: (output - y).square().sum(1).mean()


def model(block: nn.Module, seed: int = 3) -> nn.Sequential:
    """Linear stem, the block, in-place ReLU, Linear head: 5 inputs, 2 outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 3), block, nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)
    ).double()


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def flow(module: nn.Module, x: Tensor, span: tuple[float, float], steps: int = 200) -> Tensor:
    """x(t1) by many steps of the classical Runge-Kutta method, none of this library's code."""
    return reference.nodes(module, x, span, steps)[-1]


def tight(module: nn.Module, span: tuple[float, float] = (0.0, 1.0), **options: Any) -> ODEBlock:
    return ODEBlock(module, span, rtol=1e-10, atol=1e-10, **options)


class Noisy(nn.Module):
    """Dropout, or noise that no module tells of, drawn from a generator of its own perhaps."""

    def __init__(self, dropout: bool, own: bool = False) -> None:
        super().__init__()
        self.inner, self.dropout = field(), dropout
        self.generator = torch.Generator().manual_seed(4) if own else None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        slope = self.inner(t, x)
        if self.dropout:
            return nn.functional.dropout(slope, 0.3, self.training)
        noise = torch.empty_like(slope).normal_(generator=self.generator)
        return slope * (1 + 0.01 * noise)
