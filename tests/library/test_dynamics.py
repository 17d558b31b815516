"""The families: gradients, the papers' adjoint equations, closed forms, NFE arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vjp
from torchdiffeq import odeint

from snopt import ODEBlock
from snopt.dynamics import (
    ANODE,
    GHBNODE,
    HBNODE,
    NODE,
    SONODE,
    AdamInitialState,
    AdamNODE,
    Augment,
    Constant,
    ElapsedTime,
    FirstPart,
    InitialState,
    LearnedScalar,
    traces,
)
from tests.library.reference import nodes

D = 2  # width of the position


class Inner(nn.Module):
    """A smooth, time-dependent field."""

    def __init__(self, inputs: int = D, outputs: int = D) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 5)
        self.last = nn.Linear(5, outputs)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(h))) * (1 + 0.5 * torch.sin(t))


SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    "node": lambda: NODE(Inner()),
    "anode": lambda: ANODE(Inner(D + 1, D + 1)),
    "sonode": lambda: SONODE(Inner(2 * D)),
    "hbnode": lambda: HBNODE(Inner(), gamma=0.4),
    "ghbnode": lambda: GHBNODE(Inner(), gamma=0.4, xi=0.7),
    "adamnode": lambda: AdamNODE(Inner(), beta1=0.3, beta2=0.8),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
    """A system in float64 and a start, three samples, as the parts of its state."""
    torch.manual_seed(seed)
    system = SYSTEMS[name]().double()
    width = D + 1 if name == "anode" else D
    parts = [torch.randn(3, width, dtype=torch.float64) for _ in range(system.parts)]
    if name == "adamnode":
        parts[2] = parts[2].square()
    return system, parts


def joined(system: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The system over one tensor, its parts side by side."""
    if system.parts == 1:
        return system
    return lambda t, y: torch.cat(system(t, y.chunk(system.parts, dim=1)), dim=1)


def readout(y: Tensor) -> Tensor:
    weights = torch.linspace(-1.0, 1.3, y.numel(), dtype=y.dtype).reshape(y.shape)
    return (weights * y + 0.2 * y.square()).sum()


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


STATED = {
    "node": adjoint_node,
    "anode": adjoint_node,  # the same equation on the wider state
    "sonode": adjoint_sonode,
    "hbnode": adjoint_hbnode,
    "ghbnode": adjoint_ghbnode,
    "adamnode": adjoint_adamnode,
}
POINTS = (40, 120, 200)


@pytest.mark.parametrize("name", SYSTEMS)
def test_stated_adjoint_equation_holds(name: str) -> None:
    system, parts = build(name)
    adjoint = Adjoint(system, parts)
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
    system, parts = build("hbnode")
    adjoint = Adjoint(system, parts)
    for i in POINTS:
        assert heavy_ball_residual(system, adjoint, i, part=1) < 1e-5
        assert heavy_ball_residual(system, adjoint, i, part=0) > 1e-2


def test_generalised_heavy_ball_adjoint_is_not_a_heavy_ball() -> None:
    """The heavy-ball statement that does not hold: σ' breaks it, σ = identity mends it."""
    bounded, parts = build("ghbnode")
    linear, _ = build("ghbnode")
    linear.activation = lambda m: m
    for i in POINTS:
        assert heavy_ball_residual(linear, Adjoint(linear, parts), i, part=1) < 1e-5
        assert heavy_ball_residual(bounded, Adjoint(bounded, parts), i, part=1) > 1e-2


def test_adam_adjoint_is_not_an_adam_system() -> None:
    """Were it one, a_h would be driven by a_m alone; the share of a_v is far from nothing."""
    system, parts = build("adamnode")
    adjoint = Adjoint(system, parts)
    for i in POINTS:
        t, state, a = adjoint.at(i)
        with torch.no_grad():
            driven_by_m = system.beta1() * pull(system, t, state[0], a[1])
        slope = adjoint.slope(adjoint.part(0), i)
        assert float((slope - driven_by_m).norm() / slope.norm()) > 0.1


def test_second_order_adjoint_of_sonode() -> None:
    """r = a_m satisfies r'' = J_hᵀ r - d/dt(J_mᵀ r)."""
    system, parts = build("sonode")
    adjoint = Adjoint(system, parts)
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
    system, parts = build("hbnode")
    adjoint = Adjoint(system, parts)
    integrand = (adjoint.part(1) * adjoint.states.chunk(2, dim=2)[1]).sum((1, 2))
    weights = torch.ones_like(adjoint.times)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    by_gamma = -(weights * integrand).sum() * adjoint.h / 3
    gamma = system.gamma().detach()
    by_raw = by_gamma * gamma * (1 - gamma)
    torch.testing.assert_close(adjoint.parameters["gamma.raw"], by_raw, rtol=1e-7, atol=1e-9)


def test_heavy_ball_propagator_eigenvalues_pair_up() -> None:
    """The integrated adjoint generator's eigenvalues are symmetric about γ (t1 - t0) / 2."""
    system, parts = build("hbnode")
    adjoint = Adjoint(system, parts)
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


# --- A3, A4: closed forms ------------------------------------------------------------------------


class Force(nn.Module):
    """f = constant."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.full_like(h, self.value)


def solve(system: nn.Module, state: tuple[Tensor, ...], t: float) -> tuple[Tensor, ...]:
    times = torch.tensor([0.0, t], dtype=torch.float64)
    with torch.no_grad():
        return tuple(s[-1] for s in odeint(system, state, times, rtol=1e-10, atol=1e-12))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


H0, M0 = column(0.3, -1.1), column(0.8, 0.5)


def test_heavy_ball_without_force() -> None:
    system, t = HBNODE(Force(0.0), gamma=0.3).double(), 2.5
    h, m = solve(system, (H0, M0), t)
    gamma = system.gamma().item()
    torch.testing.assert_close(h, H0 + (1 - math.exp(-gamma * t)) / gamma * M0)
    torch.testing.assert_close(m, M0 * math.exp(-gamma * t))


def test_generalised_heavy_ball_without_force_is_a_damped_oscillator() -> None:
    identity = nn.Identity()
    system = GHBNODE(Force(0.0), gamma=0.3, xi=1.7, activation=identity).double()
    h, m = solve(system, (H0, M0), t := 4.0)
    gamma, xi = system.gamma().item(), system.xi().item()
    omega = math.sqrt(xi - gamma**2 / 4)
    decay, cos, sin = math.exp(-gamma * t / 2), math.cos(omega * t), math.sin(omega * t)
    torch.testing.assert_close(h, decay * (H0 * cos + (M0 + gamma / 2 * H0) / omega * sin))
    torch.testing.assert_close(m, decay * (M0 * cos - (gamma / 2 * M0 + xi * H0) / omega * sin))


def test_released_signs_are_the_same_system() -> None:
    """h' = σ(-m), m' = f - γ m + ξ h in the released code is ours with m and f negated."""
    torch.manual_seed(0)
    system = GHBNODE(Inner(), gamma=0.4, xi=0.7).double()

    def released(t, state):
        h, m = state
        return torch.tanh(-m), -system.inner(t, h) - system.gamma() * m + system.xi() * h

    start = torch.randn(4, D).double(), torch.randn(4, D).double()
    ours = solve(system, start, 1.5)
    theirs = solve(released, (start[0], -start[1]), 1.5)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], -theirs[1])


def test_adam_under_constant_force() -> None:
    c = 1.4
    system = AdamNODE(Force(c), beta1=0.3, beta2=0.8).double()
    b1, b2 = system.beta1().item(), system.beta2().item()
    v0 = column(0.2, 0.9)
    _, m, v = solve(system, (H0, M0, v0), t := 3.0)
    torch.testing.assert_close(m, -c + (M0 + c) * math.exp(-b1 * t))
    torch.testing.assert_close(v, c**2 + (v0 - c**2) * math.exp(-b2 * t))
    h_slope, m_slope, v_slope = system(torch.tensor(9.0), (H0, H0 * 0 - c, H0 * 0 + c**2))
    speed = c / math.sqrt(math.log1p(math.exp(c**2)))
    torch.testing.assert_close(h_slope, torch.full_like(H0, speed))
    torch.testing.assert_close(torch.cat([m_slope, v_slope]), torch.zeros(4, 1).double())


def test_sonode_force_sees_the_velocity() -> None:
    class Friction(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -0.5 * z[:, 1:]

    h, m = solve(SONODE(Friction()), (H0, M0), 2.0)
    torch.testing.assert_close(m, M0 * math.exp(-1.0))
    torch.testing.assert_close(h, H0 + 2 * (1 - math.exp(-1.0)) * M0)


# --- A7, and what the classes promise ------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_evaluations_are_two_more_than_a_multiple_of_six(name: str) -> None:
    system, parts = build(name)
    counts = []
    for tol in (1e-3, 1e-5, 1e-7):
        block = ODEBlock(system, (0.0, 1.0), rtol=tol, atol=tol)
        block(parts[0] if len(parts) == 1 else tuple(parts))
        counts.append(block.nfe_forward)
        assert block.nfe_forward % 6 == 2
    assert all(a <= b for a, b in pairwise(counts))
    assert counts[0] < counts[-1]


def test_elapsed_time_runs_each_sample_for_its_own_time() -> None:
    torch.manual_seed(0)
    elapsed = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    for make in (lambda: HBNODE(_Autonomous(), gamma=0.3), lambda: NODE(_Autonomous())):
        system = make().double()
        parts = tuple(torch.randn(3, D).double() for _ in range(system.parts))
        *ends, same = solve(ElapsedTime(system), (*parts, elapsed), 1.0)
        torch.testing.assert_close(same, elapsed)
        for i, t in enumerate(elapsed.tolist()):
            start = tuple(p[i : i + 1] for p in parts)
            alone = solve(_as_tuple(system), start, t)
            for end, want in zip(ends, alone, strict=True):
                torch.testing.assert_close(end[i : i + 1], want, rtol=1e-7, atol=1e-8)
    assert ElapsedTime(HBNODE(Inner())).traces().keys() == {"gamma"}
    assert ElapsedTime(Inner()).traces() == {}


class _Autonomous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(h))


def _as_tuple(system: nn.Module) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    if system.parts > 1:
        return system
    return lambda t, state: (system(t, state[0]),)


def test_gradients_of_several_solves_with_different_elapsed_times() -> None:
    """The backward solves run after all forward ones; each must see its own interval's times."""
    torch.manual_seed(0)
    system = ElapsedTime(HBNODE(_Autonomous(), gamma=0.3)).double()
    starts = torch.randn(2, 3, D).double()
    gaps = torch.tensor([[0.1, 0.7, 1.3], [2.0, 0.4, 0.9]], dtype=torch.float64)
    found = []
    for gradient in ("adjoint", "direct"):
        block = ODEBlock(system, (0.0, 1.0), rtol=1e-9, atol=1e-9, gradient=gradient)
        system.zero_grad()
        h, m = starts
        for gap in gaps:
            h, m, _ = block((h, m, gap))
        readout(h).backward()
        found.append([p.grad.clone() for p in system.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("upper", [1.0, 2.5, math.inf])
def test_learned_scalars_start_where_told_and_stay_inside(upper: float) -> None:
    scalar = LearnedScalar(0.7, upper=upper)
    assert scalar().item() == pytest.approx(0.7, rel=1e-6)
    for raw in (-20.0, 20.0):
        scalar.raw.data.fill_(raw)
        assert 0.0 < scalar().item() <= upper
    assert [n for n, _ in scalar.named_parameters()] == ["raw"]
    frozen = LearnedScalar(0.7, upper=upper, learned=False)
    assert list(frozen.parameters()) == []
    assert list(frozen.state_dict()) == ["raw"]
    for bad in (0.0, -1.0, upper, float("nan")):
        with pytest.raises(ValueError, match="outside its range"):
            LearnedScalar(bad, upper=upper)


def test_published_scalars_are_the_defaults() -> None:
    inner = nn.Identity()
    assert HBNODE(inner).traces() == {"gamma": pytest.approx(0.0474, abs=5e-5)}
    assert HBNODE(inner).gamma.raw.item() == pytest.approx(-3.0)
    traces = AdamNODE(inner).traces()
    assert traces == {
        "beta1": pytest.approx(0.0067, abs=5e-5),
        "beta2": pytest.approx(0.9933, abs=5e-5),
    }
    assert GHBNODE(inner, xi=2.127).traces().keys() == {"gamma", "xi"}
    assert NODE(inner).traces() == ANODE(inner).traces() == SONODE(inner).traces() == {}


def test_traces_of_a_model_are_named_by_module() -> None:
    inner = nn.Identity()
    model = nn.Sequential(ODEBlock(ElapsedTime(GHBNODE(inner))), ODEBlock(NODE(inner)))
    assert traces(model).keys() == {"0.field.system.gamma", "0.field.system.xi"}
    assert traces(HBNODE(inner)).keys() == {"gamma"}
    assert traces(nn.Linear(1, 1)) == {}


def test_initial_states() -> None:
    x = torch.randn(4, 3, 5, 5)
    wide = Augment(2)(x)
    assert wide.shape == (4, 5, 5, 5)
    assert torch.equal(wide[:, :3], x)
    assert not wide[:, 3:].any()

    encoder = nn.Conv2d(3, 7, 1)
    h, m = InitialState(encoder)(x)
    assert h.shape == m.shape == (4, 5, 5, 5)
    assert torch.equal(torch.cat([h, m], 1), torch.cat([x, encoder(x)], 1))

    h, m, v = AdamInitialState(encoder)(x)
    assert torch.equal(v, m.square())
    assert h.shape == (4, 5, 5, 5)
    thirds = AdamInitialState(nn.Conv2d(3, 6, 1), aligned=False)(x)  # 3 + 6 + 6 = 15 channels
    assert [part.shape[1] for part in thirds] == [5, 5, 5]
    assert bool((thirds[2] >= 0).all())

    constant = Constant(2)
    assert torch.equal(constant(torch.zeros(3, 9)), constant.value.expand(3, 2))
    assert FirstPart()((h, m)) is h
    assert FirstPart()(x) is x
    with pytest.raises(ValueError, match="cannot be cut into 2"):
        InitialState(nn.Conv2d(3, 6, 1))(x)
    with pytest.raises(ValueError, match="extra=-1"):
        Augment(-1)
