"""Solves that cannot be finished: the reason, the time reached, and what is left to do."""

from __future__ import annotations

import itertools
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SolverError
from snopt.ode.integrate import Solver, integrate
from tests.support.problems import GRADIENTS


class Formula(nn.Module):
    """A field from a function of time, state and one parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.function(t, x, self.w)


class BadBackward(torch.autograd.Function):
    """The identity, with a gradient that is not a number once time is below one half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
        ctx.bad = t.item() < 0.5
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * float("nan") if ctx.bad else grad), None


def explodes(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return w * x.square()  # from x = 1: 1 / (1 - t), gone at t = 1


def breaks(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return w * x if t < 0.5 else w * x * float("nan")


def wiggles(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return 100 * w * torch.sin(200 * t) + 0 * x


#: Where they lead from x = 1 in a given time.
REACHED: dict[Callable[..., Tensor], Callable[[float], float]] = {
    explodes: lambda t: 1 / (1 - t),
    breaks: math.exp,
    wiggles: lambda t: 1 + (1 - math.cos(200 * t)) / 2,
}


def test_large_finite_states_are_finite() -> None:
    """Their sum is not."""
    field = Formula(lambda t, x, w: 0 * w * x)
    for options in ({}, {"steps": 2}):
        x = torch.full((4, 1), 3e38)
        block = ODEBlock(field, method="rk4", gradient="direct", options=options)
        assert torch.equal(block(x), x)


X = torch.ones(2, 1, dtype=torch.float64)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_underflow(kind: str) -> None:
    block = ODEBlock(Formula(explodes).double(), (0.0, 2.0), gradient=kind)
    with pytest.raises(SolverError, match="underflow") as caught:
        block(X)
    error = caught.value
    assert error.reason == "step underflow"
    assert 0.9 < error.time < 1.1  # where the solution ceases to exist
    assert error.dt is not None
    assert abs(error.dt) < 1e-8
    assert error.nfe > 10
    for advice in ("rtol", "float64", "smooth"):
        assert advice in str(error)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_too_many_steps(kind: str) -> None:
    block = ODEBlock(
        Formula(wiggles).double(), rtol=1e-8, atol=1e-8, gradient=kind, options={"max_steps": 20}
    )
    with pytest.raises(SolverError, match="max_steps") as caught:
        block(X)
    assert caught.value.reason == "too many steps"
    assert 0 < caught.value.time < 1
    assert caught.value.nfe <= 2 + 6 * 20
    # It is the limit of one output interval: many of them may take more steps together.
    block(X, torch.linspace(0, 1, 41))
    assert block.nfe_forward > 2 + 6 * 20
    # torchdiffeq's own limit says the same.
    block = ODEBlock(Formula(wiggles).double(), rtol=1e-8, atol=1e-8, options={"max_num_steps": 20})
    with pytest.raises(SolverError) as caught:
        block(X)
    assert caught.value.reason == "too many steps"


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(
    ("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.1}), ("rk4", {"steps": 10})]
)
def test_states_that_are_not_finite(kind: str, method: str, options: dict[str, Any]) -> None:
    block = ODEBlock(Formula(breaks).double(), method=method, gradient=kind, options=options)
    with pytest.raises(SolverError) as caught:
        block(X)
    # An adaptive method never keeps a step into the bad half: it shrinks it to nothing instead.
    assert caught.value.reason in ("non-finite state", "step underflow")
    assert str(caught.value.nfe) in str(caught.value)


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
@pytest.mark.parametrize(
    ("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.1}), ("rk4", {"steps": 10})]
)
def test_failure_of_the_backward_solve(kind: str, method: str, options: dict[str, Any]) -> None:
    def bad(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        out: Tensor = BadBackward.apply(w * torch.tanh(x), t)
        return out

    block = ODEBlock(Formula(bad).double(), method=method, gradient=kind, options=options)
    loss = block(X).sum()
    with pytest.raises(SolverError) as caught:
        loss.backward()
    assert caught.value.reason in ("non-finite state", "step underflow")
    assert caught.value.time <= 1.0
    assert block(X).isfinite().all()  # the block works on


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
def test_step_limit_of_the_backward_solve(kind: str) -> None:
    """The forward slope is smooth; the backward one is not."""

    class Rough(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
            ctx.t = t.item()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return grad * 100 * torch.sin(torch.tensor(300 * ctx.t, dtype=grad.dtype)), None

    def rough(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        out: Tensor = Rough.apply(w * torch.tanh(x), t)
        return out

    block = ODEBlock(
        Formula(rough).double(), rtol=1e-6, atol=1e-6, gradient=kind, options={"max_steps": 30}
    )
    loss = block(X).sum()
    with pytest.raises(SolverError) as caught:
        loss.backward()
    assert caught.value.reason == "too many steps"
    assert caught.value.time > 0


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(
    ("function", "options"),
    [(explodes, {}), (wiggles, {"max_steps": 5}), (breaks, {}), (explodes, {"max_steps": 8})],
)
def test_partial_returns_the_state_that_was_reached(
    kind: str,
    function: Callable[..., Tensor],
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    field = Formula(function).double()
    settings: dict[str, Any] = {"gradient": kind, "rtol": 1e-6, "atol": 1e-6}
    strict = ODEBlock(field, (0.0, 2.0), options=options, **settings)
    with pytest.raises(SolverError) as caught:
        strict(X)
    block = ODEBlock(field, (0.0, 2.0), options={**options, "on_failure": "partial"}, **settings)
    with caplog.at_level(logging.WARNING, logger="snopt"):
        y = block(X)
    assert y.isfinite().all()
    assert "stopped early" in caplog.text
    time = caught.value.time
    assert 0 < time < 2
    if time < 0.99:  # nearer to the pole a tolerance says nothing
        torch.testing.assert_close(y, REACHED[function](time) * X, rtol=1e-4, atol=0)
    else:
        assert (y > 100).all()
    if function is not explodes:  # whose way back from the pole is no easier
        y.sum().backward()


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("options", [{"steps": 10}, {"step_size": 0.1}])
def test_partial_with_fixed_steps(
    kind: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Fixed steps run into the bad half; what they report is the last state that is finite."""
    block = ODEBlock(
        Formula(breaks).double(),
        method="rk4",
        gradient=kind,
        options={**options, "on_failure": "partial"},
    )
    with caplog.at_level(logging.WARNING, logger="snopt"):
        y = block(X)
    torch.testing.assert_close(y, math.exp(0.4) * X, rtol=1e-5, atol=0)


def test_a_failed_first_evaluation_is_reported() -> None:
    def hopeless(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return w * x * float("nan")

    block = ODEBlock(Formula(hopeless).double())
    with pytest.raises(SolverError) as caught:
        block(X)
    assert caught.value.time == 0.0
    with pytest.raises(SolverError):
        ODEBlock(Formula(hopeless).double())(X * float("inf"))


def test_errors_of_the_field_itself_pass_through() -> None:
    def wrong(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        raise AssertionError("the user's own check")

    with pytest.raises(AssertionError, match="own check"):
        ODEBlock(Formula(wrong).double())(X)


def test_errors_survive_other_processes() -> None:
    error = SolverError("too many steps", 0.5, 1e-3, 32, "limit 5")
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error)
    assert (twin.reason, twin.time, twin.dt, twin.nfe) == ("too many steps", 0.5, 1e-3, 32)
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, -1.0)])
@pytest.mark.parametrize(
    "solver",
    [
        Solver(),
        Solver(rtol=1e-7, atol=1e-7),
        Solver(method="rk4", options={"step_size": 0.3}),
        Solver(method="rk4", steps=7),
        Solver(method="bosh3"),
    ],
)
def test_kept_steps_tile_the_interval(solver: Solver, span: tuple[float, float]) -> None:
    steps: list[tuple[float, Tensor, float]] = []
    t = torch.tensor(span, dtype=torch.float64)
    states, statistics = integrate(
        lambda t, y: torch.cos(3 * t) * y, X, t, solver, on_step=lambda *s: steps.append(s)
    )
    assert steps[0][0] == span[0]
    assert torch.equal(steps[0][1], X)
    for (time, _, dt), (following, *_) in itertools.pairwise(steps):
        assert time + dt == pytest.approx(following, abs=1e-12)
    last, _, dt = steps[-1]
    sign = 1 if span[1] > span[0] else -1
    assert sign * (last + dt) >= sign * span[1] - 1e-9
    assert sign * last < sign * span[1]
    exact = torch.exp((torch.sin(3 * t[1]) - torch.sin(3 * t[0])) / 3)
    torch.testing.assert_close(states[-1], exact.expand(2, 1), rtol=2e-2, atol=0)
    assert statistics.nfe >= len(steps)


def test_landing_ends_a_step_on_the_last_time() -> None:
    steps: list[tuple[float, Tensor, float]] = []
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    states, _ = integrate(
        lambda t, y: y, X, t, Solver(), exact_endpoint=True, on_step=lambda *s: steps.append(s)
    )
    last, _, dt = steps[-1]
    assert abs(last + dt - 1.0) < 1e-12
    for time, state in zip(t[1:].tolist(), states[1:], strict=True):
        torch.testing.assert_close(state, torch.exp(torch.tensor(time)) * X, rtol=1e-3, atol=0)
