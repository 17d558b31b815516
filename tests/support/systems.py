"""The families over a small smooth field, for the tests of their equations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snopt.dynamics import (
    ANODE,
    GHBNODE,
    HBNODE,
    NODE,
    SONODE,
    AdamNODE,
    NesterovNODE,
)

D = 2  # width of the position


class Inner(nn.Module):
    """A smooth, time-dependent field."""

    def __init__(self, inputs: int = D, outputs: int = D) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 5)
        self.last = nn.Linear(5, outputs)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(h))) * (1 + 0.5 * torch.sin(t))


SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    "node": lambda: NODE(Inner()),
    "anode": lambda: ANODE(Inner(D + 1, D + 1)),
    "sonode": lambda: SONODE(Inner(2 * D)),
    "hbnode": lambda: HBNODE(Inner(), gamma=0.4),
    "ghbnode": lambda: GHBNODE(Inner(), gamma=0.4, xi=0.7),
    "nesterovnode": lambda: NesterovNODE(Inner(), start=0.8),
    "adamnode": lambda: AdamNODE(Inner(), beta1=0.3, beta2=0.8),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
    """A system in float64 and a start, three samples, as the parts of its state."""
    torch.manual_seed(seed)
    system = SYSTEMS[name]().double()
    width = D + 1 if name == "anode" else D
    parts = [torch.randn(3, width, dtype=torch.float64) for _ in range(system.parts)]
    if name == "adamnode":
        parts[2] = parts[2].square()
    return system, parts


def joined(system: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The system over one tensor, its parts side by side."""
    if system.parts == 1:
        return system
    return lambda t, y: torch.cat(system(t, y.chunk(system.parts, dim=1)), dim=1)


def readout(y: Tensor) -> Tensor:
    weights = torch.linspace(-1.0, 1.3, y.numel(), dtype=y.dtype).reshape(y.shape)
    return (weights * y + 0.2 * y.square()).sum()
