"""NesterovNODE beside the second-order equation, the published system and a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import NesterovNODE
from tests.support.systems import D, Inner, build


def end(system: nn.Module, start: tuple[Tensor, ...], to: float = 1.3) -> tuple[Tensor, ...]:
    block = ODEBlock(system, (0.0, to), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        return block(start)


def force(system: NesterovNODE, tau: float, h: Tensor) -> Tensor:
    return system.inner(torch.tensor(tau - system.start, dtype=torch.float64), h).detach()


def by_scipy(slope, y0: Tensor, span: tuple[float, float]) -> Tensor:
    def flat(tau: float, y) -> Tensor:
        return slope(tau, torch.as_tensor(y).reshape(y0.shape)).flatten()

    found = solve_ivp(flat, span, y0.flatten().numpy(), rtol=1e-10, atol=1e-11)
    return torch.as_tensor(found.y[:, -1]).reshape(y0.shape)


def factor(tau: float) -> float:
    return tau**-1.5 * math.exp(tau / 2)


def test_it_is_nesterovs_second_order_equation() -> None:
    """h'' + (3 / t) h' = F, with F = k f - (3 / (4 t^2) - 1 / 4) h."""
    system, (h, m) = build("nesterovnode")
    tau0 = system.start
    speed = factor(tau0) * m - (1.5 / tau0 - 0.5) * h

    def slope(tau: float, y: Tensor) -> Tensor:
        h, v = y
        outer = factor(tau) * force(system, tau, h) - (0.75 / tau**2 - 0.25) * h
        return torch.stack([v, outer - 3 / tau * v])

    expected = by_scipy(slope, torch.stack([h, speed]), (tau0, tau0 + 1.3))
    torch.testing.assert_close(end(system, (h, m))[0], expected[0], rtol=1e-7, atol=1e-8)


def test_it_is_the_published_differential_algebraic_system() -> None:
    """x' = m, m' = -m + f(t, h), h = k x."""
    system, (h, m) = build("nesterovnode")
    span = (system.start, system.start + 1.3)

    def slope(tau: float, y: Tensor) -> Tensor:
        x, m = y
        return torch.stack([m, force(system, tau, factor(tau) * x) - m])

    x, last = by_scipy(slope, torch.stack([h / factor(span[0]), m]), span)
    found = end(system, (h, m))
    torch.testing.assert_close(found[0], factor(span[1]) * x, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found[1], last, rtol=1e-7, atol=1e-8)


class Still(nn.Module):
    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(h)


def test_without_a_force_it_has_a_closed_form() -> None:
    h, m = torch.randn(2, 3, D, dtype=torch.float64)
    found, momentum = end(NesterovNODE(Still()), (h, m), to=2.0)
    x = h / factor(1.0) + m * (1 - math.exp(-2.0))
    torch.testing.assert_close(found, factor(3.0) * x, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(momentum, m * math.exp(-2.0), rtol=1e-8, atol=1e-9)


def test_a_start_at_the_singularity_is_refused() -> None:
    for start in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected a time above 0"):
            NesterovNODE(Inner(), start=start)
