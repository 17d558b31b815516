"""Nodes of the backward solve: their weights, and the factors they converge to."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from snopt import ODEBlock, SNOpt
from snopt.curvature.capture import FieldObserver
from snopt.ode.quadrature import MidpointRule, TrapezoidalRule
from tests.support import problems, reference
from tests.support.problems import GRADIENTS
from tests.support.training import Pairs, distance, measured

# -- quadrature -----------------------------------------------------------------------------------

SPANS = [(0.0, 1.0), (0.2, 1.7), (1.0, -0.5)]


@pytest.mark.parametrize("span", SPANS[1:])
@pytest.mark.parametrize("sampling", ["steps", "grid"])
@pytest.mark.parametrize("solver", problems.COARSE)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_weights_add_up_to_the_interval(
    kind: str,
    solver: str,
    sampling: str,
    span: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []

    def spy(self: FieldObserver, solve: Any, t: float, y: Tensor, a: Tensor, w: float) -> None:
        seen.append((t, w))

    monkeypatch.setattr(FieldObserver, "_evaluate_node", spy)
    x, y = problems.data()
    block = ODEBlock(problems.field(), span, gradient=kind, **problems.COARSE[solver])
    with SNOpt(block, rule="paper", sampling=sampling, grid_points=30):
        problems.squares(y)(block(x)).backward()
    times, weights = [t for t, _ in seen], [w for _, w in seen]
    assert sum(weights) == pytest.approx(abs(span[1] - span[0]), abs=1e-12)
    assert min(weights) >= 0
    assert times == sorted(times, reverse=span[1] > span[0])
    assert min(span) <= min(times) < max(times) <= max(span)
    if sampling == "grid":  # both ends are nodes
        assert len(seen) == 30
        torch.testing.assert_close(
            torch.tensor(times), torch.linspace(span[1], span[0], 30), rtol=0, atol=1e-6
        )


def test_weights_of_a_trajectory_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in GRADIENTS:
        for solver in ("dopri5", "rk4-steps"):
            total = []
            monkeypatch.setattr(
                FieldObserver, "_evaluate_node", lambda *s, to=total: to.append(s[-1])
            )
            x, y = problems.data()
            block = ODEBlock(problems.field(), gradient=kind, **problems.COARSE[solver])
            with SNOpt(block, rule="paper"):
                states = block(x, [0.0, 0.3, 0.9, 1.5])
                sum(problems.squares(y)(s) for s in states).backward()
            assert sum(total) == pytest.approx(1.5, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_rules_integrate_polynomials(steps: int) -> None:
    """The midpoint rule is exact for straight lines, Hermite interpolation for cubics."""
    found: list[tuple[float, Tensor, Tensor, float]] = []
    evaluate_node = lambda *node: found.append(node)  # noqa: E731
    ts = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64).tolist()

    def state(t: float) -> Tensor:
        return torch.tensor([t**3 - t, 2.0 * t], dtype=torch.float64)

    def slope(t: float) -> Tensor:
        return torch.tensor([3 * t**2 - 1, 2.0], dtype=torch.float64)

    midpoints = MidpointRule(evaluate_node)
    for t in ts:
        midpoints.boundary(t, state(t), state(t))
    midpoints.finish()
    assert sum(w * y[1].item() for _, y, _, w in found) == pytest.approx(1.0)
    found.clear()
    grid = TrapezoidalRule(evaluate_node, lambda t, y, a: (slope(t), slope(t)), 1.0, 0.0, 11)
    for t in ts:
        grid.boundary(t, state(t), state(t))
    grid.finish()
    assert len(found) == 11
    for t, y, a, _ in found:
        torch.testing.assert_close(y, state(t))
        torch.testing.assert_close(a, state(t))


# -- factors against a dense grid -----------------------------------------------------------------


@cache
def on_a_dense_grid(span: tuple[float, float]) -> Pairs:
    field, (x, y) = problems.field(), problems.data()
    return reference.factors(field, x, span, problems.squares(y), 200)


@pytest.mark.parametrize("span", SPANS[1:])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_factors_converge_with_tolerance(kind: str, span: tuple[float, float]) -> None:
    field, (x, y) = problems.field(), problems.data()
    loss = problems.squares(y)
    expected = on_a_dense_grid(span)
    errors = []
    for tolerance in (1e-3, 1e-7, 1e-11):
        block = ODEBlock(field, span, rtol=tolerance, atol=tolerance, gradient=kind)
        errors.append(distance(measured(block, x, loss), expected))
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 1e-3


@pytest.mark.parametrize("method", ["rk4", "euler", "midpoint"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_factors_converge_with_the_number_of_steps(kind: str, method: str) -> None:
    field, (x, y) = problems.field(), problems.data()
    loss = problems.squares(y)
    expected = on_a_dense_grid((0.0, 1.0))
    errors = []
    for steps in (10, 20, 40):
        options = {"steps": steps} if method != "midpoint" else {"step_size": 1 / steps}
        block = ODEBlock(field, method=method, gradient=kind, options=options)
        errors.append(distance(measured(block, x, loss), expected))
    order = 1.7 if method in ("euler", "midpoint") else 3.5  # the solver's or the midpoint rule's
    assert errors[1] < errors[0] / order
    assert errors[2] < errors[1] / order
    assert errors[2] < (6e-2 if method == "euler" else 2e-3)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_grid_sampling_converges_with_its_points(kind: str) -> None:
    field, (x, y) = problems.field(), problems.data()
    loss = problems.squares(y)
    expected = on_a_dense_grid((0.3, 1.5))
    block = problems.tight(field, (0.3, 1.5), gradient=kind)
    errors = [
        distance(measured(block, x, loss, sampling="grid", grid_points=n), expected)
        for n in (10, 30, 100)
    ]
    assert errors[2] < errors[1] / 5 < errors[0] / 25
    assert errors[2] < 1e-4


TIMES = [0.0, 0.4, 1.0]


def total(states: Tensor) -> Tensor:
    loss = problems.squares(problems.data()[1])
    return loss(states[1]) + 2 * loss(states[2])


@cache
def of_a_trajectory() -> Pairs:
    """By hand: two intervals, the first one's adjoint with the jump at its end."""
    field, (x, y) = problems.field(), problems.data()
    loss = problems.squares(y)
    middle = problems.flow(field, x, (0.0, 0.4)).detach()
    late = reference.factors(field, middle, (0.4, 1.0), lambda z: 2 * loss(z), 400)
    early = reference.factors(
        field,
        x,
        (0.0, 0.4),
        lambda z: loss(z) + 2 * loss(problems.flow(field, z, (0.4, 1.0), 100)),
        200,
    )
    return {
        name: (
            0.4 * early[name][0] + 0.6 * late[name][0],
            early[name][1] / 0.4 + late[name][1] / 0.6,  # the integrals over E[g g^T], T = 1
        )
        for name in early
    }


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("solver", ["dopri5", "steps"])
def test_factors_of_a_trajectory(kind: str, solver: str) -> None:
    """Losses at several times: the adjoint jumps there, the factors are one integral over all."""
    settings = {"dopri5": {"rtol": 1e-11, "atol": 1e-11}, "steps": {"options": {"steps": 100}}}
    block = ODEBlock(problems.field(), gradient=kind, method="dopri5", **settings[solver])
    optimizer = SNOpt(block, rule="paper", lr=0.0)
    total(block(problems.data()[0], TIMES)).backward()
    optimizer.step()
    # Backpropagation gives one adjoint at an output time, that before the jump: first order there.
    found = distance(optimizer.factors(), of_a_trajectory())
    assert found < (5e-3 if kind == "direct" else 1e-3)
