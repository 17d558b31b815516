"""Gradients held against differences of a loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def against_differences(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Hold the gradient of each parameter's first entry against central differences of a loss."""
    loss().backward()
    for p in model.parameters():
        with torch.no_grad():
            entry, losses = (0,) * p.ndim, []
            for step in (1e-5, -2e-5):
                p[entry] += step
                losses.append(float(loss()))
            p[entry] += 1e-5
        assert p.grad is not None
        expected = (losses[0] - losses[1]) / 2e-5
        assert float(p.grad[entry]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
