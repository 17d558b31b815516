"""Gradients over a power of their norm: the loss' root in place of the loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snopt import SNOpt
from tests.support import problems
from tests.support.training import XS, YS, flat, net, train


class WithScale(nn.Module):
    """A model one of whose parameters belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.net(x) * self.scale
        return scaled


@pytest.mark.parametrize("basis", ["gradient", "curvature", "both"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_steps_are_those_of_gradients_divided_by_hand(power: float, basis: str) -> None:
    ours, twin = WithScale(), WithScale()
    optimizer = SNOpt(ours, 0.02, rule="adam", basis=basis, normalize=power, refresh_every=2)
    by_hand = SNOpt(twin, 0.02, rule="adam", basis=basis, refresh_every=2)
    for _ in range(5):
        by_hand.zero_grad()
        problems.squares(YS)(twin(XS)).backward()
        grads = [p.grad for p in twin.parameters() if p.grad is not None]
        length = float(torch.stack([g.norm() for g in grads]).norm())
        for g in grads:
            g.mul_(length**-power)
        by_hand.step()
        train(ours, optimizer, 1)
        torch.testing.assert_close(flat(ours), flat(twin), rtol=1e-9, atol=1e-12)


def test_the_users_gradients_stay() -> None:
    model = net()
    optimizer = SNOpt(model, 0.02, rule="adam", normalize=0.5)
    problems.squares(YS)(model(XS)).backward()
    before = copy.deepcopy(problems.gradients(model))
    optimizer.step()
    assert torch.equal(before, problems.gradients(model))


def test_where_gradients_shrink_steadily_the_moments_keep_up() -> None:
    """By a tenth at every step: the second moment falls by a fortieth at most, its root's half."""
    steps = []
    for power in (0.0, 0.5, 1.0):
        layer = nn.Linear(1, 1, bias=False).double()
        optimizer = SNOpt(
            layer, 1.0, rule="adam", basis="gradient", betas=(0.8, 0.95), normalize=power
        )
        before = flat(layer)
        for k in range(60):
            before = flat(layer)
            layer.weight.grad = torch.full_like(layer.weight, 0.9**k)
            optimizer.step()
        steps.append(float((flat(layer) - before).norm()))
    assert steps[2] == pytest.approx(1.0)
    assert steps[0] < 0.2 * steps[1] < 0.1 * steps[2]


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_a_gradient_without_a_norm_is_taken_as_it_is(value: float) -> None:
    found = []
    for power in (0.0, 0.5):
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.fill_(1.0)
        optimizer = SNOpt(layer, 0.1, rule="adam", basis="gradient", normalize=power)
        layer.weight.grad = torch.full_like(layer.weight, value)
        layer.bias.grad = torch.full_like(layer.bias, value)
        optimizer.step()
        found.append(flat(layer))
    torch.testing.assert_close(*found, equal_nan=True)
