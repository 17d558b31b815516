"""Losses that are sums: rules that divide by curvature stand still, and say so once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from snopt import SNOpt
from snopt.optim.rules import RULES
from tests.support import problems
from tests.support.training import XS, flat, net, train

FACTORS = [rule for rule in RULES if rule != "gauss_newton"]


def run(rule: str, scale: float, lr: float = 0.02, count: int = 9) -> list[str]:
    model = net()
    x = torch.randn(64, 5, dtype=torch.float64)
    y = torch.stack([x[:, 0] - x[:, 1], torch.sin(x[:, 2])], 1)
    optimizer = SNOpt(model, lr, rule=rule, refresh_every=3)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(count):
            optimizer.zero_grad()
            (scale * problems.squares(y)(model(x))).backward()
            optimizer.step()
    return [str(x.message) for x in heard]


@pytest.mark.parametrize("rule", FACTORS)
@pytest.mark.parametrize("scale", [1e4, 1e7])
def test_a_loss_of_another_size_is_told_once(rule: str, scale: float) -> None:
    heard = run(rule, scale)
    if rule == "adam":
        assert not heard
    else:
        assert len(heard) == 1
        assert "take the mean" in heard[0]


@pytest.mark.parametrize("rule", FACTORS)
@pytest.mark.parametrize(
    ("scale", "lr"), [(1.0, 0.02), (100.0, 0.02), (1e-6, 0.02), (1.0, 0.0), (1.0, 1e-7), (0.0, 1.0)]
)
def test_ordinary_small_steps_are_not(rule: str, scale: float, lr: float) -> None:
    assert not run(rule, scale, lr)


def test_what_is_fitted_is_not() -> None:
    model = net()
    y = model(XS).detach() + 1e-6
    train(model, SNOpt(model, 0.02, rule="paper", refresh_every=2), 6, XS, y)
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("rule", ["paper", "kfac"])
@pytest.mark.parametrize("basis", ["gradient", "curvature", "both"])
@pytest.mark.parametrize("block", [True, False])
def test_samples_that_nobody_tells_of_are_told_once(rule: str, basis: str, block: bool) -> None:
    """Blocks tell how many are behind a gradient, and all layers where curvature is heard."""
    model = net() if block else nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    optimizer = SNOpt(model, 1e-3, rule=rule, basis=basis, refresh_every=2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        train(model, optimizer, 5)
    unknown = basis == "gradient" and not block
    assert ["none took part" in str(x.message) for x in heard] == [True] * unknown
