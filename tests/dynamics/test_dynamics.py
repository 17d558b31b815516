"""The families: closed forms, NFE arithmetic, elapsed times, learned scalars, initial states."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
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
    learned_scalars,
)
from tests.support.systems import SYSTEMS, D, Inner, build, readout

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


def test_learned_scalars_of_a_model_are_named_by_module() -> None:
    inner = nn.Identity()
    model = nn.Sequential(ODEBlock(ElapsedTime(GHBNODE(inner))), ODEBlock(NODE(inner)))
    assert learned_scalars(model).keys() == {"0.field.system.gamma", "0.field.system.xi"}
    assert learned_scalars(HBNODE(inner)).keys() == {"gamma"}
    assert learned_scalars(nn.Linear(1, 1)) == {}


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
