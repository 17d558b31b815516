"""Samples that act on one another in a later mode alone: normalization thawed after some steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, SNOpt
from tests.support.jacobians import dense_step, flat
from tests.support.output_steps import PLAIN, D, inputs, same

STEPS = 5


class Switched(nn.Module):
    """Scales its features by those of all samples where ``scale`` trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(D, 4), nn.Linear(4, 2)
        self.scale = nn.Identity().eval()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.scale.training:
            h = h / (0.1 + h.square().mean(dim=0))
        found: Tensor = self.last(h)
        return found


def backward(model: nn.Module, optimizer: SNOpt, x: Tensor, y: Tensor) -> None:
    outputs = model(x)
    loss = functional.mse_loss(outputs, y)
    optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
    loss.backward()


def test_rows_of_outputs_are_compared_again_in_another_mode() -> None:
    model, x = Switched(), inputs()
    y = torch.ones_like(model(x).detach())
    optimizer = GaussNewton(model, **PLAIN)
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(model, optimizer, x, y)
        optimizer.step()
    model.scale.train()
    expected = dense_step(model, lambda m: m(x), lambda f: functional.mse_loss(f, y.flatten()))
    before = flat(model)
    optimizer.zero_grad()
    backward(model, optimizer, x, y)
    optimizer.step()
    same(before - flat(model), expected)


@pytest.mark.parametrize("early", [True, False])
def test_rows_of_samples_are_compared_again_in_another_mode(early: bool) -> None:
    model, x = Switched(), inputs()
    y = torch.ones_like(model(x).detach())
    optimizer = SNOpt(model, 0.1, rule="gauss_newton")
    for _ in range(STEPS):
        backward(model, optimizer, x, y)
        optimizer.step()
        optimizer.zero_grad()
    model.scale.train()
    if early:
        optimizer.zero_grad()
    backward(model, optimizer, x, y)
    with pytest.raises(ValueError, match="does not keep the samples apart"):
        optimizer.step()


def test_a_mode_that_was_compared_is_not_compared_in_every_step() -> None:
    model, x = Switched(), inputs()
    y = torch.ones_like(model(x).detach())
    optimizer = GaussNewton(model, **PLAIN)
    checks = optimizer.method.rows.checks  # type: ignore[attr-defined]
    due = []
    for k in range(12):
        model.last.requires_grad_(k % 2 == 0)
        optimizer.zero_grad()
        outputs = model(x)
        checks.look()
        due.append(checks.due)
        loss = functional.mse_loss(outputs, y)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        loss.backward()
        optimizer.step()
    assert due == [True] * 6 + [False] * 6
