"""Every method of the torchdiffeq at hand, with every gradient: the right one, or refused by name.

Later releases have more of them (implicit ones, tsit5): the tests take whatever there is.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS

import snopt.ode.integrate
from snopt import ODEBlock, SolverError
from snopt.ode.gradients import GRADIENTS
from snopt.ode.methods import Torchdiffeq
from snopt.ode.runge_kutta import TABLEAUS
from tests.support import problems

X = problems.data()[0][:2, :2].contiguous()


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) * (1 + t))


class Square(nn.Module):
    """From x = 2 it leaves every bound at t = 1 / 2."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x * x


def gradient(field: nn.Module, **how: Any) -> Tensor:
    x = X.clone().requires_grad_()
    y = ODEBlock(field, **how)(x)
    found = torch.autograd.grad(y.square().sum(), [x, *field.parameters()])
    return torch.cat([g.flatten() for g in found])


def differences(field: nn.Module, **how: Any) -> Tensor:
    block, x, found = ODEBlock(field, **how), X.clone(), []
    with torch.no_grad():
        for entry in (e for p in (x, *field.parameters()) for e in p.view(-1)):
            values = []
            for step in (1e-4, -2e-4):
                entry += step
                values.append(block(x).square().sum())
            entry += 1e-4
            found.append((values[0] - values[1]) / 2e-4)
    return torch.stack(found)


def how(method: str) -> dict[str, Any]:
    fixed = "step_size" in Torchdiffeq(method).options
    tolerance = 1e-6 if method in ("adaptive_heun", "bosh3", "fehlberg2") else 1e-9
    tight = {"rtol": tolerance, "atol": tolerance}
    if "adams" in method:
        tight = {"rtol": 1e-6, "atol": 1e-6}  # of its inner iteration
    return {"method": method, "options": {"step_size": 0.02} if fixed else {}, **tight}


@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_the_gradient_is_that_of_what_was_solved(method: str) -> None:
    field, settings = Field(), how(method)
    if not Torchdiffeq(method).differentiable:
        with pytest.raises(ValueError, match=rf"direct.*{method}.*choose gradient='adjoint'"):
            ODEBlock(field, gradient="direct", **settings)
        return
    if "step_size" in settings["options"]:
        settings["options"] = {"step_size": 0.1}
    if "adams" in method:
        settings |= {"rtol": 1e-3, "atol": 1e-3}
    if method == "adaptive_heun":  # hundreds of steps otherwise
        settings |= {"rtol": 1e-5, "atol": 1e-5}
    got = gradient(field, gradient="direct", **settings)
    want = differences(field, gradient="direct", **settings)
    # Steps of an adaptive method answer to the differences, within its tolerance.
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@cache
def of_the_flow() -> Tensor:
    return gradient(Field(), gradient="direct", rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_adjoints_are_those_of_the_flow(method: str, kind: str) -> None:
    order = {"euler": 0.05, "implicit_euler": 0.05}.get(method, 2e-3)
    want = of_the_flow()
    got = gradient(Field(), gradient=kind, **how(method))
    torch.testing.assert_close(got, want, rtol=order, atol=order * float(want.abs().max()))


@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_checkpoint_repeats_or_is_refused(method: str) -> None:
    field, settings = Field(), how(method)
    if "step_size" in settings["options"]:
        settings["options"] = {"step_size": 0.1}
    if method not in TABLEAUS:
        with pytest.raises(ValueError, match=rf"{method}.*choose method from .*dopri5"):
            ODEBlock(field, gradient="checkpoint", **settings)
        return
    found = [gradient(field, gradient=kind, **settings) for kind in ("direct", "checkpoint")]
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)


# -- solves without an end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "dopri5") for kind in GRADIENTS), ("adjoint", "scipy_solver")],
)
def test_a_span_that_no_step_crosses(
    kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snopt.ode.integrate, "MOST_STEPS", 60)
    field = Field()
    block = ODEBlock(field, gradient=kind, method=method)
    with pytest.raises(
        SolverError, match=r"limit 60.*raise options=\{'max_steps'.*shorter time"
    ) as e:
        block(X, [0.0, 1e30])
    assert e.value.reason == "too many steps"
    block(X)


def test_the_limit_is_for_each_output_and_for_error_control_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert snopt.ode.integrate.MOST_STEPS >= 10**6
    field = Field()
    block = ODEBlock(field, rtol=1e-6, atol=1e-6)
    times = torch.linspace(0, 3, 40, dtype=torch.float64)
    want = block(X, times)
    monkeypatch.setattr(snopt.ode.integrate, "MOST_STEPS", 3)
    assert torch.equal(block(X, times), want)
    with pytest.raises(SolverError, match="limit 3"):
        block(X, [0.0, 3.0])
    ODEBlock(field, rtol=1e-6, atol=1e-6, options={"max_steps": 1000})(X, [0.0, 3.0])
    ODEBlock(field, method="rk4", options={"step_size": 0.1})(X, [0.0, 3.0])
    assert ODEBlock(field, method="rk4").solver.limit(1) == math.inf


@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.2, 0.7, 1.0]])
def test_a_solve_that_scipy_gives_up(times: list[float]) -> None:
    """It returns the outputs that it reached, the initial state for want of others."""
    block = ODEBlock(Square(), method="scipy_solver", options={"solver": "RK45"})
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    with (
        pytest.warns(UserWarning, match="min_step"),
        pytest.raises(SolverError, match=r"step underflow at t = 0\.49.*stopped before the end"),
    ):
        block(x, times)
