"""The families' gradients, and the papers' adjoint equations as identities along a solution."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vjp

from snopt import ODEBlock
from snopt.dynamics import (
    GHBNODE,
)
from tests.support.reference import nodes
from tests.support.systems import SYSTEMS, D, build, joined, readout

# --- A2: gradients of all six against finite differences -----------------------------------------


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_match_finite_differences(name: str, gradient: str) -> None:
    system, parts = build(name)
    block = ODEBlock(system, (0.0, 1.0), rtol=1e-10, atol=1e-10, gradient=gradient)
    start = [part.requires_grad_() for part in parts]

    def loss() -> Tensor:
        out = block(start[0] if len(start) == 1 else tuple(start))
        return readout(out if isinstance(out, Tensor) else torch.cat(out, dim=1))

    loss().backward()
    generator = torch.Generator().manual_seed(1)
    for tensor in [*system.parameters(), *start]:
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        step, values = 1e-3, []
        with torch.no_grad():
            for shift in (-2, -1, 1, 2):
                tensor += shift * step * direction
                values.append(float(loss()))
                tensor -= shift * step * direction
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        assert float((tensor.grad * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)


# --- The adjoint equations, as identities along a solution ---------------------------------------

STEPS, STRIDE = 240, 3


class Adjoint:
    """a(t) = dL/d state(t) on a grid, from autograd through a fine fixed-step solve."""

    def __init__(self, system: nn.Module, parts: list[Tensor], t1: float = 1.2) -> None:
        self.system, self.h = system, t1 / STEPS
        start = torch.cat(parts, dim=1).requires_grad_()
        states = nodes(joined(system), start, (0.0, t1), STEPS)
        gradients = torch.autograd.grad(readout(states[-1]), [*states, *system.parameters()])
        self.times = torch.linspace(0, t1, STEPS + 1, dtype=torch.float64)
        self.states = torch.stack(states).detach()
        self.values = torch.stack(gradients[: STEPS + 1])
        named = [name for name, _ in system.named_parameters()]
        self.parameters = dict(zip(named, gradients[STEPS + 1 :], strict=True))

    def at(self, i: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        n = self.system.parts
        return self.times[i], self.states[i].chunk(n, dim=1), self.values[i].chunk(n, dim=1)

    def slope(self, values: Tensor, i: int) -> Tensor:
        v, k = values, STRIDE
        return (v[i - 2 * k] - 8 * v[i - k] + 8 * v[i + k] - v[i + 2 * k]) / (12 * k * self.h)

    def bend(self, values: Tensor, i: int) -> Tensor:
        v, k = values, STRIDE
        total = -v[i - 2 * k] + 16 * v[i - k] - 30 * v[i] + 16 * v[i + k] - v[i + 2 * k]
        return total / (12 * (k * self.h) ** 2)

    def part(self, k: int) -> Tensor:
        return self.values.chunk(self.system.parts, dim=2)[k]


@cache
def adjoint_of(name: str) -> Adjoint:
    return Adjoint(*build(name))


def pull(system: nn.Module, t: Tensor, h: Tensor, cotangent: Tensor) -> Tensor:
    """Jᵀ cotangent for J = ∂f/∂h of the inner field."""
    return vjp(lambda h: system.inner(t, h), h)[1](cotangent)[0]


def adjoint_node(system, t, state, a):
    return (-pull(system, t, state[0], a[0]),)


def adjoint_sonode(system, t, state, a):
    both = pull(system, t, torch.cat(state, 1), a[1])
    return -both[:, :D], -a[0] - both[:, D:]


def adjoint_hbnode(system, t, state, a):
    return -pull(system, t, state[0], a[1]), -a[0] + system.gamma() * a[1]


def adjoint_ghbnode(system, t, state, a):
    slope = 1 - torch.tanh(state[1]).square()
    return (
        -pull(system, t, state[0], a[1]) + system.xi() * a[1],
        -slope * a[0] + system.gamma() * a[1],
    )


def adjoint_adamnode(system, t, state, a):
    h, m, v = state
    root = system.phi(v).sqrt()
    d = 1 / (root + system.eps)
    d_slope = -torch.sigmoid(v) / (2 * root * (root + system.eps) ** 2)  # softplus' = sigmoid
    b1, b2 = system.beta1(), system.beta2()
    f = system.inner(t, h)
    return (
        b1 * pull(system, t, h, a[1]) - 2 * b2 * pull(system, t, h, f * a[2]),
        d * a[0] + b1 * a[1],
        m * d_slope * a[0] + b2 * a[2],
    )


def adjoint_nesterovnode(system, t, state, a):
    tau = t + system.start
    k = tau.pow(-1.5) * (tau / 2).exp()
    return (3 / (2 * tau) - 0.5) * a[0] - pull(system, t, state[0], a[1]), a[1] - k * a[0]


STATED = {
    "node": adjoint_node,
    "anode": adjoint_node,  # the same equation on the wider state
    "sonode": adjoint_sonode,
    "hbnode": adjoint_hbnode,
    "ghbnode": adjoint_ghbnode,
    "nesterovnode": adjoint_nesterovnode,
    "adamnode": adjoint_adamnode,
}
POINTS = (40, 120, 200)


@pytest.mark.parametrize("name", SYSTEMS)
def test_stated_adjoint_equation_holds(name: str) -> None:
    adjoint = adjoint_of(name)
    system = adjoint.system
    for i in POINTS:
        t, state, a = adjoint.at(i)
        with torch.no_grad():
            stated = torch.cat(STATED[name](system, t, state, a), dim=1)
        measured = adjoint.slope(adjoint.values, i)
        torch.testing.assert_close(measured, stated, rtol=1e-6, atol=1e-7)


def heavy_ball_residual(system: nn.Module, adjoint: Adjoint, i: int, part: int) -> float:
    """Relative size of a'' - γ a' - Jᵀ a for one part of the adjoint."""
    t, state, _ = adjoint.at(i)
    a = adjoint.part(part)
    with torch.no_grad():
        bend = adjoint.bend(a, i)
        force = pull(system, t, state[0], a[i]) + system.gamma() * adjoint.slope(a, i)
        if isinstance(system, GHBNODE):
            force = force - system.xi() * a[i]
    return float((bend - force).norm() / bend.norm())


def test_heavy_ball_adjoint_is_a_heavy_ball_in_a_m_only() -> None:
    adjoint = adjoint_of("hbnode")
    system = adjoint.system
    for i in POINTS:
        assert heavy_ball_residual(system, adjoint, i, part=1) < 1e-5
        assert heavy_ball_residual(system, adjoint, i, part=0) > 1e-2


def test_generalised_heavy_ball_adjoint_is_not_a_heavy_ball() -> None:
    """The heavy-ball statement that does not hold: σ' breaks it, σ = identity mends it."""
    bounded = adjoint_of("ghbnode")
    system, parts = build("ghbnode")
    system.activation = lambda m: m
    linear = Adjoint(system, parts)
    for i in POINTS:
        assert heavy_ball_residual(system, linear, i, part=1) < 1e-5
        assert heavy_ball_residual(bounded.system, bounded, i, part=1) > 1e-2


def test_adam_adjoint_is_not_an_adam_system() -> None:
    """Were it one, a_h would be driven by a_m alone; the share of a_v is far from nothing."""
    adjoint = adjoint_of("adamnode")
    system = adjoint.system
    for i in POINTS:
        t, state, a = adjoint.at(i)
        with torch.no_grad():
            driven_by_m = system.beta1() * pull(system, t, state[0], a[1])
        slope = adjoint.slope(adjoint.part(0), i)
        assert float((slope - driven_by_m).norm() / slope.norm()) > 0.1


def test_second_order_adjoint_of_sonode() -> None:
    """r = a_m satisfies r'' = J_hᵀ r - d/dt(J_mᵀ r)."""
    adjoint = adjoint_of("sonode")
    system = adjoint.system
    r = adjoint.part(1)
    with torch.no_grad():
        through_m = torch.stack(
            [
                pull(system, t, y, r_i)[:, D:]
                for t, y, r_i in zip(adjoint.times, adjoint.states, r, strict=True)
            ]
        )
        for i in POINTS:
            through_h = pull(system, adjoint.times[i], adjoint.states[i], r[i])[:, :D]
            stated = through_h - adjoint.slope(through_m, i)
            torch.testing.assert_close(adjoint.bend(r, i), stated, rtol=1e-5, atol=1e-6)


def test_damping_gradient_is_the_integral_of_a_m_times_m() -> None:
    adjoint = adjoint_of("hbnode")
    system = adjoint.system
    integrand = (adjoint.part(1) * adjoint.states.chunk(2, dim=2)[1]).sum((1, 2))
    weights = torch.ones_like(adjoint.times)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    by_gamma = -(weights * integrand).sum() * adjoint.h / 3
    gamma = system.gamma().detach()
    by_raw = by_gamma * gamma * (1 - gamma)
    torch.testing.assert_close(adjoint.parameters["gamma.raw"], by_raw, rtol=1e-7, atol=1e-9)


def test_heavy_ball_propagator_eigenvalues_pair_up() -> None:
    """The integrated adjoint generator's eigenvalues are symmetric about γ (t1 - t0) / 2."""
    adjoint = adjoint_of("hbnode")
    system = adjoint.system
    sample = adjoint.states[:, 0, :D]
    jacobians = [
        jacrev(lambda h, t=t: system.inner(t, h))(h)
        for t, h in zip(adjoint.times, sample, strict=True)
    ]
    integral = torch.trapezoid(torch.stack(jacobians), dx=adjoint.h, dim=0).detach()
    total, eye, gamma = float(adjoint.times[-1]), torch.eye(D).double(), system.gamma().item()
    generator = torch.cat(
        [
            torch.cat([torch.zeros(D, D).double(), -integral.T], dim=1),
            torch.cat([-total * eye, gamma * total * eye], dim=1),
        ]
    )
    eigenvalues = torch.linalg.eigvals(generator)
    for value in eigenvalues:
        partner = gamma * total - value
        assert float((eigenvalues - partner).abs().min()) < 1e-10
