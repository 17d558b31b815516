"""Solving, measuring and training small problems, for several test modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from tests.support import problems

Pairs = dict[str, tuple[Tensor, Tensor]]


def measured(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], **settings: Any
) -> Pairs:
    """Factors of one backward pass; the parameters stay as they are."""
    optimizer = SNOpt(model, lr=0.0, **{"rule": "paper", **settings})
    optimizer.zero_grad()
    loss(model(x)).backward()
    optimizer.step()
    return optimizer.factors()


def distance(found: Pairs, expected: Pairs, prefix: str = "field.") -> float:
    """The largest relative error of a factor."""
    errors = [0.0]
    for name, pair in expected.items():
        for got, want in zip(found[prefix + name], pair, strict=True):
            errors.append(float((got - want).norm() / want.norm()))
    return max(errors)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def net(steps: int = 4, seed: int = 0) -> nn.Module:
    return problems.model(
        ODEBlock(problems.field(seed), method="rk4", gradient="direct", options={"steps": steps})
    )


XS, YS = problems.batch()


def train(model: nn.Module, optimizer: Any, count: int, x: Tensor = XS, y: Tensor = YS) -> Tensor:
    for _ in range(count):
        optimizer.zero_grad()
        problems.squares(y)(model(x)).backward()
        optimizer.step()
    return flat(model)
