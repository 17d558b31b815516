"""SNOpt on CUDA in mixed precision, with a GradScaler for float16."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from snopt import SNOpt
from tests.optim.test_cuda import RULES, solved
from tests.support import problems
from tests.support.devices import DEVICE, HALVES, ONLY_CUDA, weights
from tests.support.problems import GRADIENTS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("rule", ["default", "curvature", "paper", "kfac"])
@pytest.mark.parametrize("half", HALVES)
def test_mixed_precision_fits(half: torch.dtype, rule: str, gradient: str) -> None:
    """Near the steps in float32."""
    x, y = (z.to(DEVICE, torch.float32) for z in problems.batch(16))
    losses = {}
    for dtype in (half, torch.float32):
        model = solved(gradient).to(DEVICE, torch.float32)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, enabled=dtype == torch.float16)
        optimizer = SNOpt(model, 1e-2, grad_scaler=scaler, **RULES[rule])
        found = []
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, half, enabled=dtype == half):
                loss = functional.mse_loss(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(float(loss.detach()))
        losses[dtype] = torch.tensor(found)
    assert bool((losses[half].diff() < 0).all())
    torch.testing.assert_close(losses[half], losses[torch.float32], rtol=0.05, atol=0.01)


@ONLY_CUDA
@pytest.mark.parametrize("rule", ["default", "curvature", "paper"])
def test_a_step_that_overflows_is_left_out(rule: str) -> None:
    x, y = (z.to(DEVICE, torch.float32) for z in problems.batch())
    model = solved().to(DEVICE, torch.float32)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)
    optimizer = SNOpt(model, 1e-2, grad_scaler=scaler, **RULES[rule])
    before = weights(model)
    scales, moved = [], []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(weights(model), before))
    assert scales[0] == 2.0**39
    assert not moved[0]
    assert moved[-1]
    assert bool(weights(model).isfinite().all())
