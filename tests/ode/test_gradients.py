"""One gradient test for all four gradients: finite differences, a tight solve and torchdiffeq."""

from __future__ import annotations

import gc
from functools import cache
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from snopt import ODEBlock
from tests.support import problems
from tests.support.problems import GRADIENTS, SOLVERS

SPANS = {"unit": (0.0, 1.0), "shifted": (0.3, 1.7), "backwards": (1.2, -0.1)}
# Relative error against the exact flow, by solver: what its tolerance (bosh3: its
# interpolation past the end of the interval) or step length gives.
LIMITS = {"dopri5": 2e-6, "bosh3": 2e-4, "rk4": 2e-8, "midpoint": 8e-5, "rk4-steps": 1e-8}


def gradient(run: Any, field: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the loss in x and the parameters, as one vector."""
    field.zero_grad()
    x = x.clone().requires_grad_()
    problems.squares(y)(run(x)).backward()
    return torch.cat([x.grad.reshape(-1), problems.gradients(field)])


@cache
def of_the_flow(span: str) -> Tensor:
    field, (x, y) = problems.field(), problems.data()
    return gradient(lambda x: problems.flow(field, x, SPANS[span]), field, x, y)


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("solver", LIMITS)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradient_of_the_flow(kind: str, solver: str, span: str) -> None:
    field, (x, y) = problems.field(), problems.data()
    block = ODEBlock(field, SPANS[span], gradient=kind, **SOLVERS[solver])
    assert relative(gradient(block, field, x, y), of_the_flow(span)) < LIMITS[solver]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradient_by_finite_differences(kind: str) -> None:
    field, (x, y) = problems.field(), problems.data(count=2)
    block = problems.tight(field, gradient=kind)
    loss = problems.squares(y)
    exact = gradient(block, field, x, y)[x.numel() :]
    found, h = [], 1e-5
    with torch.no_grad():
        for p in field.parameters():
            flat = p.view(-1)
            for i in range(flat.numel()):
                flat[i] += h
                up = loss(block(x))
                flat[i] -= 2 * h
                found.append(float(up - loss(block(x))) / (2 * h))
                flat[i] += h
    assert relative(torch.tensor(found, dtype=torch.float64), exact) < 1e-7


@pytest.mark.parametrize("kind", ["checkpoint", "direct"])
@pytest.mark.parametrize("solver", ["rk4-steps", "dopri5-steps", "rk4", "midpoint"])
def test_discrete_gradients_are_exact(kind: str, solver: str) -> None:
    """Of the discrete solve itself, however coarse: finite differences of its own output."""
    field, (x, y) = problems.field(), problems.data(count=2)
    settings = {**SOLVERS[solver], "options": {"steps": 2} if "steps" in solver else {}}
    block = ODEBlock(field, gradient=kind, **settings)
    exact = gradient(block, field, x, y)[: x.numel()]
    found, h = torch.zeros_like(x), 1e-5
    with torch.no_grad():
        for i in range(x.numel()):
            bump = torch.zeros_like(x).view(-1)
            bump[i] = h
            bump = bump.view_as(x)
            loss = problems.squares(y)
            found.view(-1)[i] = (loss(block(x + bump)) - loss(block(x - bump))) / (2 * h)
    assert relative(found.view(-1), exact) < 1e-8


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "dopri8", "fehlberg2"])
def test_adjoint_agrees_with_torchdiffeq(method: str, tolerance: float) -> None:
    """Step by step: the same evaluations, so the same numbers to rounding."""
    field, (x, y) = problems.field(), problems.data()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def theirs(x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint_adjoint(
            field, x, t, rtol=tolerance, atol=tolerance, method=method
        )
        return states[-1]

    block = ODEBlock(field, method=method, rtol=tolerance, atol=tolerance)
    assert relative(gradient(block, field, x, y), gradient(theirs, field, x, y)) < 1e-9


def test_seminorm_takes_the_steps_of_torchdiffeq() -> None:
    field, (x, y) = problems.field(), problems.data()
    calls = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = field

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            calls.append(1)
            out: Tensor = self.inside(t, x)
            return out

    counted = Counted()
    t = torch.tensor([0.0, 3.0], dtype=torch.float64)

    def theirs(x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint_adjoint(
            counted, x, t, rtol=1e-5, atol=1e-5, adjoint_options={"norm": "seminorm"}
        )
        return states[-1]

    expected = gradient(theirs, field, x, y)
    block = ODEBlock(field, (0.0, 3.0), rtol=1e-5, atol=1e-5, gradient="adjoint-seminorm")
    assert relative(gradient(block, field, x, y), expected) < 1e-3
    assert abs(block.nfe_forward + block.nfe_backward - len(calls)) <= 6


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("solver", ["dopri5", "rk4-steps", "rk4"])
def test_gradient_of_a_trajectory(kind: str, solver: str) -> None:
    field, (x, y) = problems.field(), problems.data()
    times = torch.tensor([0.0, 0.2, 0.72, 1.0], dtype=torch.float64)

    def exact(x: Tensor) -> Tensor:
        states = [x]
        for a, b in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            states.append(problems.flow(field, states[-1], (a, b), 60))
        return torch.stack(states)

    def loss(states: Tensor) -> Tensor:
        return sum(  # type: ignore[return-value]
            (i + 1.0) * problems.squares(y)(state) for i, state in enumerate(states)
        )

    def run(solve: Any) -> Tensor:
        field.zero_grad()
        start = x.clone().requires_grad_()
        loss(solve(start)).backward()
        return torch.cat([start.grad.reshape(-1), problems.gradients(field)])

    block = ODEBlock(field, gradient=kind, **SOLVERS[solver])
    # Fixed steps past an output time are interpolated linearly by torchdiffeq: 0.04 divides all.
    assert relative(run(lambda x: block(x, times)), run(exact)) < 5e-6


class Pair(nn.Module):
    """A state of two parts of different shapes that drive each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, z = state
        return torch.tanh(self.b(z)) * (1 + t), torch.sin(self.a(x))


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("solver", ["dopri5", "rk4-steps"])
def test_gradient_of_a_tuple(kind: str, solver: str) -> None:
    torch.manual_seed(0)
    field, (x, _) = Pair().double(), problems.data()
    z = torch.randn(7, 2, dtype=torch.float64)

    class Joined(nn.Module):
        def forward(self, t: Tensor, flat: Tensor) -> Tensor:
            return torch.cat(field(t, (flat[:, :3], flat[:, 3:])), dim=1)

    def run(solve: Any) -> Tensor:
        field.zero_grad()
        start = x.clone().requires_grad_()
        a, b = solve(start)
        (a.square().sum() + (b.sum(1) * a[:, 0]).sum()).backward()
        return torch.cat([start.grad.reshape(-1), problems.gradients(field)])

    def exact(x: Tensor) -> tuple[Tensor, Tensor]:
        end = problems.flow(Joined(), torch.cat([x, z], 1), (0.0, 1.0))
        return end[:, :3], end[:, 3:]

    block = ODEBlock(field, gradient=kind, **SOLVERS[solver])
    assert relative(run(lambda x: block((x, z))), run(exact)) < 2e-6


class Spectral(nn.Module):
    """Complex weights of Fourier coefficients, as in neural operators."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex128))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = torch.fft.irfft(torch.fft.rfft(torch.tanh(x)) @ self.weight.conj(), n=3)
        return self.scale * out


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_gradient_of_complex_parameters(kind: str) -> None:
    field, (x, y) = Spectral(), problems.data()

    def run(kind: str) -> list[Tensor]:
        field.zero_grad()
        block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
        states = block(x, [0.0, 0.4, 1.0])
        (problems.squares(y)(states[-1]) + states[1].sum()).backward()
        return [p.grad for p in field.parameters()]

    torch.testing.assert_close(run(kind), run("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_unused_frozen_and_borrowed_parameters(kind: str) -> None:
    """Zero or none for what does not enter, and ordinary gradients beside the block."""
    field, (x, y) = problems.field(), problems.data()
    field.unused = nn.Linear(2, 2).double()
    field.inner.bias.requires_grad_(False)
    block = problems.tight(field, gradient=kind)
    problems.squares(y)(field(torch.tensor(0.3), block(x))).backward()
    found = {n: p.grad for n, p in field.named_parameters() if p.grad is not None}
    assert found.pop("unused.weight", torch.zeros(1)).abs().max() == 0
    assert found.pop("unused.bias", torch.zeros(1)).abs().max() == 0
    field.zero_grad()
    problems.squares(y)(field(torch.tensor(0.3), problems.flow(field, x, (0.0, 1.0)))).backward()
    assert found.keys() == {"inner.weight", "outer.weight"}
    for name, value in found.items():
        torch.testing.assert_close(value, field.get_parameter(name).grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("solver", ["dopri5", "rk4", "rk4-steps"])
def test_nothing_outlives_a_step(kind: str, solver: str) -> None:
    """No cycle of references holds states until Python happens to look for cycles."""
    field, (x, y) = problems.field(), problems.data()
    block = ODEBlock(field, gradient=kind, **SOLVERS[solver])
    problems.squares(y)(block(x)).backward()
    gc.collect()
    gc.disable()
    try:
        problems.squares(y)(block(x)).backward()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        # Not the compiler's own fake tensors, which an earlier test may have left.
        left = [garbage for garbage in gc.garbage if type(garbage) in (Tensor, nn.Parameter)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_field_of_constant_slope(kind: str) -> None:
    """Neither the state nor time enters the slope: x(t1) = x + T c, by hand."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double())

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.c.expand_as(x)

    field, (x, y) = Constant(), problems.data()
    start = x.clone().requires_grad_()
    end = ODEBlock(field, (0.0, 2.0), gradient=kind)(start)
    torch.testing.assert_close(end, x + 2 * field.c, rtol=1e-12, atol=1e-12)
    problems.squares(y)(end).backward()
    slope = 2 * (end.detach() - y) / len(x)
    torch.testing.assert_close(start.grad, slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(field.c.grad, 2 * slope.sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_backward_evaluations_are_counted(kind: str) -> None:
    field, (x, y) = problems.field(), problems.data()
    block = ODEBlock(field, gradient=kind)
    problems.squares(y)(block(x)).backward()
    assert block.nfe_forward % 6 == 2  # a search for the first step, six evaluations for each
    expected = {"adjoint": 2, "adjoint-seminorm": 2, "checkpoint": 0, "direct": 0}
    assert block.nfe_backward % 6 == expected[kind]
    assert (block.nfe_backward == 0) == (kind == "direct")
