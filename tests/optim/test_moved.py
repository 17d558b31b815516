"""A model that is converted or moved between two steps takes along what steps are judged by.

Another precision stands for another device, which the machine may lack.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from snopt import LevenbergMarquardt, SNOpt


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("lr", [0.1, 30.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"rows": "samples", "backtrack": 0.1},
        {"rows": "outputs", "backtrack": 0.1},
        {"rows": "outputs", "damping": LevenbergMarquardt(0.1, every=1)},
    ],
)
def test_gauss_newton_steps(settings: dict, lr: float, told: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = SNOpt(model, lr, rule="gauss_newton", trust=1e9, **copy.deepcopy(settings))
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64):
        model.to(dtype)
        optimizer.zero_grad()
        outputs = model(x.to(dtype))
        loss = functional.mse_loss(outputs, y.to(dtype))
        targets = y.to(dtype) if told else None
        # Untold, samples' losses are taken for halves of sums, as the loss is of two outputs.
        known = loss if told or settings["rows"] == "outputs" else None
        optimizer.curvature_pass(outputs, "gaussian", targets=targets, loss=known)
        loss.backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
