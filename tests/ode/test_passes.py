"""Only the backward pass of the loss makes curvature; what brings none is listed, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from snopt import Horizon, ODEBlock, SNOpt
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import measured


def build(kind: str = "adjoint") -> nn.Sequential:
    block = ODEBlock(problems.field(), method="rk4", gradient=kind, options={"steps": 4})
    return problems.model(block)


def alike(found: SNOpt, expected: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert found.factors().keys() == expected.keys()
    for name, pair in expected.items():
        for got, want in zip(found.factors()[name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-14)


X, Y = problems.batch()
LOSS = problems.squares(Y)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_pass_thrown_away_leaves_no_curvature(kind: str, zeros: bool) -> None:
    model = build(kind)
    expected = measured(copy.deepcopy(model), X, LOSS)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    loss = LOSS(model(X))
    (30 * loss).backward(retain_graph=True)
    model.zero_grad(set_to_none=not zeros)
    loss.backward()
    optimizer.step()
    alike(optimizer, expected)


@pytest.mark.parametrize(
    ("kind", "create"), [*((kind, False) for kind in GRADIENTS), ("direct", True)]
)
def test_derivatives_for_something_else_are_not_counted(kind: str, create: bool) -> None:
    model = build(kind)
    expected = measured(copy.deepcopy(model), X, LOSS)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    horizon = Horizon(model[1], optimizer, "fixed", every=1)
    x = X.clone().requires_grad_()
    out = model(x)
    torch.autograd.grad(1000 * out.sum(), x, retain_graph=True, create_graph=create)
    torch.autograd.grad(1000 * out.sum(), list(model.parameters()), retain_graph=True)
    LOSS(out).backward()
    optimizer.step()
    alike(optimizer, expected)
    plain = build(kind)
    other = torch.optim.SGD(plain.parameters(), 0.0)
    alone = Horizon(plain[1], other, "fixed", every=1)
    LOSS(plain(X)).backward()
    other.step()
    assert horizon.trace[0].q_t == pytest.approx(alone.trace[0].q_t, rel=1e-9)


def test_gradients_that_are_returned_and_set_by_hand_count() -> None:
    model = build()
    expected = measured(copy.deepcopy(model), X, LOSS)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(LOSS(model(X)), parameters), strict=True):
        p.grad = g
    optimizer.step()
    alike(optimizer, expected)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_steps_in_evaluation_mode_have_curvature(kind: str) -> None:
    model = build(kind)
    expected = measured(copy.deepcopy(model), X, LOSS)
    optimizer = SNOpt(model.eval(), rule="paper", lr=0.0)
    LOSS(model(X)).backward()
    optimizer.step()
    alike(optimizer, expected)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_two_optimizers_on_one_model(kind: str) -> None:
    model = build(kind)
    expected = measured(copy.deepcopy(model), X, LOSS)
    first, second = SNOpt(model, rule="paper", lr=0.0), SNOpt(model, rule="paper", lr=0.0)
    LOSS(model(X)).backward()
    first.step()
    second.step()
    alike(first, expected)
    alike(second, expected)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_forward_pass_alone_does_not_change_the_samples(kind: str) -> None:
    model = build(kind)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(model(X)).backward()
        model(X[:1])
        optimizer.step()
        assert optimizer.method.samples == len(X)


class Adjoint(nn.Module):
    """Solves by itself."""

    def __init__(self, solve: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.field, self.head, self.solve = problems.field(), nn.Linear(3, 2).double(), solve

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.solve(self.field, x))
        return out


@pytest.mark.parametrize(
    "solve",
    [
        lambda f, x: torchdiffeq.odeint_adjoint(f, x, torch.tensor([0.0, 1.0]), method="rk4")[-1],
        lambda f, x: ODEBlock(f, gradient="adjoint")(x),
        lambda f, x: ODEBlock(f, gradient="checkpoint")(x),
    ],
)
def test_a_solve_inside_backward_is_named(
    solve: Callable[[nn.Module, Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = Adjoint(solve)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(model(X[:, :3])).backward()
        optimizer.step()
    assert set(optimizer.factors()) == {"head"}
    assert "odeint_adjoint" in optimizer.coverage().fallback["field.inner.weight"]
    assert set(optimizer.coverage().preconditioned) == {"head.weight", "head.bias"}
    told = [r for r in caplog.records if "field.inner" in r.getMessage()]
    assert len(told) == 1


class Hamiltonian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(2, 5), nn.Linear(5, 1)
        self.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.outer(torch.tanh(self.inner(x))).sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


@pytest.mark.parametrize("used_outside", [False, True])
def test_a_solve_inside_backward_is_named_whatever_else_was_heard(used_outside: bool) -> None:
    """A derivative inside the field, or a use of its layer beside the solve."""
    field, x, t = Hamiltonian(), X[:, :2], torch.tensor([0.0, 1.0])
    layer = "inner" if used_outside else "outer"
    optimizer = SNOpt(field, rule="paper", lr=0.0)
    out = torchdiffeq.odeint_adjoint(field, x, t, method="rk4")[-1]
    loss = LOSS(out) + (field.inner(x).square().mean() if used_outside else 0.0)
    loss.backward()
    optimizer.step()
    assert not optimizer.factors()
    assert "odeint_adjoint" in optimizer.coverage().fallback[f"{layer}.weight"]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_field_that_is_a_derivative(kind: str) -> None:
    field = Hamiltonian()
    block = ODEBlock(field, method="rk4", gradient=kind, options={"steps": 4})
    optimizer = SNOpt(block, rule="paper", lr=0.0)
    LOSS(block(X[:, :2])).backward()
    optimizer.step()
    assert set(optimizer.factors()) == {"field.inner"}
    assert "derivative" in optimizer.coverage().fallback["field.outer.weight"]


def test_a_model_that_is_a_derivative() -> None:
    """Cotangents are those of the loss, as autograd gives them."""
    field = Hamiltonian()
    optimizer = SNOpt(field, rule="paper", lr=0.0)
    x = X[:, :2]
    LOSS(field(torch.zeros(()), x)).backward()
    optimizer.step()
    heard: list[Tensor] = []
    handle = field.inner.register_forward_hook(lambda m, z, out: heard.append(out))
    loss = LOSS(field(torch.zeros(()), x))
    handle.remove()
    (c,) = torch.autograd.grad(loss, heard)
    torch.testing.assert_close(optimizer.factors()["inner"][1], len(x) * c.T @ c)
    assert "derivative" in optimizer.coverage().fallback["outer.weight"]


# -- which samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_curvature_passes_of_parts_add_up(curvature: str) -> None:
    """Unequal micro-batches, each with a curvature pass of its own, are the joined batch."""
    found = []
    count = 7 if curvature == "ggn" else 700
    x, y = problems.batch(count)
    for parts in ([slice(0, count)], [slice(0, count // 3), slice(count // 3, count)]):
        model = problems.model(
            ODEBlock(problems.field(), method="rk4", gradient="adjoint", options={"steps": 4})
        )
        optimizer = SNOpt(model, 0.0, rule="kfac", curvature=curvature)
        optimizer.zero_grad()
        for part in parts:
            out = model(x[part])
            optimizer.curvature_pass(out, "gaussian")
            ((out - y[part]).square().sum() / count).backward()
        optimizer.step()
        factors = optimizer.factors()
        found.append({name: float(b.trace()) for name, (_, b) in factors.items()})
    for name, trace in found[0].items():
        # Draws differ from part to part: of so many samples the average is about the same.
        tolerance = 1e-9 if curvature == "ggn" else 0.3
        assert found[1][name] == pytest.approx(trace, rel=tolerance)


def test_another_first_dimension_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ODEBlock(problems.field(), method="rk4", options={"steps": 4})
            self.head = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            times = torch.linspace(0, 1, 5, dtype=torch.float64)
            out: Tensor = self.head(self.block(x, times))
            return out

    model, (x, _) = TimeFirst(), problems.data()
    optimizer = SNOpt(model, 0.01, rule="paper", refresh_every=1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    told = [r.getMessage() for r in caplog.records if "different numbers" in r.getMessage()]
    assert len(told) == 1
    assert "head 5" in told[0]
    assert "block 7" in told[0]
