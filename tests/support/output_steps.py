"""Models for Gauss-Newton steps from all outputs, and one such step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, ODEBlock
from tests.support.jacobians import DAMPING, flat
from tests.support.problems import Field

N, D = 5, 3
TIMES = torch.linspace(0.0, 1.0, 4, dtype=torch.float64)
PLAIN = {"damping": DAMPING, "trust": 1e9, "backtrack": math.inf}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.a(x)), self.a.weight.T)


class Trajectories(nn.Module):
    """(N, D) to (T, N, D), time first."""

    def __init__(self, gradient: str, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(D, D)
        self.block = ODEBlock(Field(), gradient=gradient, **options)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(self.stem(x), TIMES)
        return found


def steps(gradient: str) -> nn.Module:
    return Trajectories(gradient, method="rk4", options={"steps": 2})


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "few outputs": (lambda: nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2)), 0),
    "many outputs": (lambda: nn.Sequential(nn.Linear(D, 1), nn.Tanh(), nn.Linear(1, 4)), 0),
    "in place": (lambda: nn.Sequential(nn.Linear(D, 4), nn.ELU(inplace=True), nn.Linear(4, 2)), 0),
    "norm": (lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Linear(4, 2)), 0),
    "coupled": (
        lambda: nn.Sequential(
            nn.Linear(D, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
        ),
        0,
    ),
    "tied": (Tied, 0),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, 2), nn.Flatten()),
        0,
    ),
    "direct": (lambda: steps("direct"), 1),
    "checkpoint": (lambda: steps("checkpoint"), 1),
}


def made(kind: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    build, dim = MODELS[kind]
    return build().double(), dim


def inputs() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def like(outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)


def step(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    likelihood: str = "gaussian",
    targets: Tensor | None = None,
    batch_dim: int = 0,
    between: Callable[[], Any] = lambda: None,
    **settings: Any,
) -> Tensor:
    """One step; what it subtracts from the flat parameters."""
    optimizer = GaussNewton(model, **{**PLAIN, **settings})
    before = flat(model)
    optimizer.zero_grad()
    outputs = model(x)
    value = loss(outputs)
    optimizer.curvature_pass(outputs, likelihood, targets=targets, loss=value, batch_dim=batch_dim)
    value.backward()
    between()
    optimizer.step()
    return before - flat(model)


def same(found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    assert float((found - expected).norm()) <= rtol * float(expected.norm())
