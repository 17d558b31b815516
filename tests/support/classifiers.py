"""Small classifiers with ODE blocks in float64, their data, and one step of Gauss-Newton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import ODEBlock, SNOpt
from tests.support import problems

CLASSES = 4


class Classifier(nn.Module):
    """A recurrence of solves with a gate between them, float64: (N, T, 2) to logits (N, 4)."""

    def __init__(self, gradient: str = "direct", method: str = "rk4") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inputs = nn.Linear(2, 3)
        self.block = ODEBlock(
            problems.Field(), method=method, gradient=gradient, options={"steps": 2}
        )
        self.gate = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        projected = self.inputs(x)
        h = torch.zeros_like(projected[:, 0])
        for k in range(x.shape[1]):
            h = self.block(torch.tanh(self.gate(h) + projected[:, k]))
        logits: Tensor = self.head(h)
        return logits


class Pictures(nn.Module):
    """Convolutions, one of them grouped and strided, in front of and inside a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.block = ODEBlock(
            ConvField(), method="midpoint", gradient="direct", options={"steps": 2}
        )
        self.head = nn.Linear(4, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.first(x)).mean(dim=(2, 3)))
        return logits


class ConvField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def series(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 2, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def pictures(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def gauss_newton(model: nn.Module, lr: float = 0.5, **settings: Any) -> SNOpt:
    return SNOpt(model, lr, rule="gauss_newton", **{"trust": 1e9, **settings})


def backward(model: nn.Module, optimizer: SNOpt, x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    outputs = model(x)
    optimizer.curvature_pass(outputs)
    (scale * functional.cross_entropy(outputs, y)).backward()
