"""A solver and a gradient method that somebody adds: a row of a table each, and all else holds."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.ode.gradients import GRADIENTS, Gradient, SolveContext, detached
from snopt.ode.gradients.kept import Kept
from snopt.ode.runge_kutta import TABLEAUS, Tableau
from tests.support import problems

RALSTON = Tableau((0.0, 2 / 3), ((2 / 3,),), (1 / 4, 3 / 4))


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return -self.rate * x


@pytest.fixture
def ralston(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(TABLEAUS, "ralston", RALSTON)
    return "ralston"


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_tableau_is_a_method(ralston: str, gradient: str) -> None:
    field, steps = Decay(), 3
    block = ODEBlock(field, method=ralston, gradient=gradient, options={"steps": steps})
    y = block(torch.ones(2, 1, dtype=torch.float64))
    y.sum().backward()
    h, k = 1 / steps, 0.7
    factor = 1 - h * k + (h * k) ** 2 / 2  # of every explicit method of two stages and order two
    torch.testing.assert_close(y[0, 0].item(), factor**steps)
    want = 2 * steps * factor ** (steps - 1) * (-h + h * h * k)
    exact = gradient in ("direct", "checkpoint")
    torch.testing.assert_close(
        field.rate.grad.item(), want, rtol=1e-12 if exact else 3e-2, atol=0.0
    )
    assert block.nfe_forward == 2 * steps


def test_a_tableau_without_error_control_asks_for_steps(ralston: str) -> None:
    with pytest.raises(ValueError, match=r"'ralston' is a tableau .* add options=\{'steps'"):
        ODEBlock(Decay(), method=ralston)


def test_a_method_without_a_tableau_is_named(ralston: str) -> None:
    with pytest.raises(ValueError, match=r"not 'dopri8'; choose one of .*ralston"):
        ODEBlock(Decay(), method="dopri8", options={"steps": 2})
    with pytest.raises(ValueError, match=r"method='ralson'; choose one of .*ralston"):
        ODEBlock(Decay(), method="ralson")


def forward(problem: SolveContext, y0: Tensor, t: Tensor) -> Kept:
    return Kept(t, problem.integrate("forward", problem.field, y0, t, norm=problem.norm))


def by_differences(
    problem: SolveContext, kept: Kept, inputs: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Gradients in every number by central differences: slow, and of no other method's making."""
    y0 = kept.states[0].clone()

    def gradient(x: Tensor, size: float = 1e-6) -> Tensor:
        found, flat = torch.zeros_like(x), x.detach().view(-1)
        for i, sign in itertools.product(range(len(flat)), (1.0, -1.0)):
            before = flat[i].clone()
            flat[i] += sign * size
            states = forward(problem, y0, kept.times).states
            flat[i] = before
            found.view(-1)[i] += sign * float((states * cotangent).sum()) / (2 * size)
        return found

    return tuple(gradient(x) for x in (y0, *inputs))


def differences(problem: SolveContext, y0: Tensor, t: Tensor) -> Tensor:
    return detached(problem, y0, t, forward=forward, backward=by_differences)


def train(gradient: str, rule: str | None = None) -> list[Tensor]:
    block = ODEBlock(problems.field(), gradient=gradient, rtol=1e-8, atol=1e-8)
    model = problems.model(block)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with nullcontext() if rule is None else SNOpt(model, 0.01, rule=rule):
        model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_a_gradient_method_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRADIENTS, "differences", Gradient(differences))
    assert "differences" in GRADIENTS
    torch.testing.assert_close(train("differences"), train("direct"), rtol=1e-5, atol=1e-7)


def test_others_ask_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Gradient(differences)
    monkeypatch.setitem(GRADIENTS, "differences", entry)
    with pytest.raises(ValueError, match=r"'differences'.*choose one of checkpoint, direct"):
        train("differences", "gauss_newton")
    monkeypatch.setitem(GRADIENTS, "differences", replace(entry, through_layers=True))
    block = ODEBlock(problems.field(), gradient="differences")
    SNOpt(problems.model(block), 0.01, rule="gauss_newton")
    monkeypatch.setitem(GRADIENTS, "differences", replace(entry, repeats_steps=True))
    with pytest.raises(ValueError, match="gradient='differences' repeats single steps"):
        ODEBlock(Decay(), gradient="differences", method="dopri8")
    monkeypatch.setitem(GRADIENTS, "differences", replace(entry, through_solver=True))
    with pytest.raises(ValueError, match="gradient='differences' goes through"):
        ODEBlock(Decay(), gradient="differences", method="scipy_solver")
