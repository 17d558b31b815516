"""A model that is converted or moved between two steps takes along what steps are judged by.

Another precision stands for another device, which the machine may lack.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import LevenbergMarquardt, SNOpt
from tests.support.training import flat


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
def test_gauss_newton_steps(settings: dict[str, Any], lr: float, told: bool) -> None:
    x, y = torch.randn(8, 3), torch.randn(8, 2)

    def path(*dtypes: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtypes[0])
        optimizer = SNOpt(model, lr, rule="gauss_newton", trust=1e9, **copy.deepcopy(settings))
        found = []
        for dtype in dtypes:
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
            found.append(flat(model).double())
        return found

    single, double = torch.float32, torch.float64
    moved, stayed = path(single, single, double, double), path(*[double] * 4)
    torch.testing.assert_close(moved, stayed, rtol=1e-4, atol=1e-5)
