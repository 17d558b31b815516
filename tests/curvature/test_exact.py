"""Theorem 1 and Proposition 2 against autograd through an independent fine-grid solve."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from snopt.curvature.exact import low_rank, second_order
from snopt.errors import SolverError

M = 3  # state size
LIMIT = 1e-7  # relative error that the issue asks for


class Autonomous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(M, 4)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.outer = nn.Linear(4, M, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x))) * self.gain


class TimeDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(M + 1, 4)
        self.outer = nn.Linear(4, M)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.cat([x, t.reshape(1)])))
        return self.outer(h) + torch.cos(3 * t) * x


class Tied(nn.Module):
    """One weight used twice, next to a frozen one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(M, M)
        self.second = nn.Linear(M, M)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("shift", torch.linspace(-1, 1, M))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) - self.shift * x


FIELDS = {"autonomous": Autonomous, "time": TimeDependent, "tied": Tied}
SPANS = {
    "unit": (0.0, 1.0),
    "shifted": (0.4, 1.9),
    "backwards": (1.0, 0.0),
    "negative": (0.5, -0.6),
}


def phi(x: Tensor) -> Tensor:
    """A terminal loss with a full-rank, state-dependent Hessian."""
    mix = torch.linspace(-1.0, 1.5, 4 * M, dtype=x.dtype).reshape(4, M)
    return torch.log(torch.cosh(mix @ x)).sum() + 0.3 * x.square().sum() + x.prod()


hessian_phi = jacrev(grad(phi))  # reverse over reverse: forward mode warns of torch.jit's end


class Case(NamedTuple):
    field: nn.Module
    span: tuple[float, float]
    x0: Tensor
    theta: Tensor
    x1: Tensor

    def terminal(self, x0: Tensor, theta: Tensor) -> Tensor:
        """Classical Runge-Kutta on 150 steps, differentiable in both arguments."""
        names, shapes = zip(*[(k, p.shape) for k, p in self.field.named_parameters()], strict=True)
        parts = theta.split([s.numel() for s in shapes])
        values = {k: p.view(s) for k, p, s in zip(names, parts, shapes, strict=True)}

        def f(t: Tensor, x: Tensor) -> Tensor:
            return functional_call(self.field, values, (t, x))

        grid = torch.linspace(*self.span, 151, dtype=x0.dtype)
        x, h = x0, (self.span[1] - self.span[0]) / 150
        for t in grid[:-1]:
            k1 = f(t, x)
            k2 = f(t + h / 2, x + h / 2 * k1)
            k3 = f(t + h / 2, x + h / 2 * k2)
            k4 = f(t + h, x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    def loss(self, x0: Tensor, theta: Tensor) -> Tensor:
        return phi(self.terminal(x0, theta))


@lru_cache
def case(field: str, span: str) -> Case:
    torch.manual_seed(3)
    module = FIELDS[field]().double()
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    x0 = torch.tensor([0.6, -0.4, 0.9], dtype=torch.float64)
    partial = Case(module, SPANS[span], x0, theta, x0)
    with torch.no_grad():
        return partial._replace(x1=partial.terminal(x0, theta))


@lru_cache
def jacobians(field: str, span: str) -> tuple[Tensor, Tensor]:
    """Of the terminal state, in the initial one and in the parameters."""
    c = case(field, span)
    found: tuple[Tensor, Tensor] = jacrev(c.terminal, argnums=(0, 1))(c.x0, c.theta)
    return found


def error(value: Tensor, reference: Tensor) -> float:
    assert value.shape == reference.shape
    return float((value - reference).norm() / reference.norm())


# A field without time knows no span but by its length.
CASES = pytest.mark.parametrize(
    ("field", "span"), [*(("time", s) for s in SPANS), ("autonomous", "unit"), ("tied", "shifted")]
)


@CASES
def test_linearised_sensitivities_are_gradient_and_gauss_newton(field: str, span: str) -> None:
    c = case(field, span)
    phi_x, phi_xx = grad(phi)(c.x1), hessian_phi(c.x1)
    got = second_order(c.field, c.x1, c.span, phi_x, phi_xx)
    jx, jt = jacobians(field, span)
    assert error(got.q_x, jx.T @ phi_x) < LIMIT
    assert error(got.q_theta, jt.T @ phi_x) < LIMIT
    assert error(got.q_xx, jx.T @ phi_xx @ jx) < LIMIT
    assert error(got.q_theta_x, jt.T @ phi_xx @ jx) < LIMIT
    assert error(got.q_theta_theta, jt.T @ phi_xx @ jt) < LIMIT


@CASES
def test_with_dynamics_curvature_it_is_the_hessian(field: str, span: str) -> None:
    c = case(field, span)
    got = second_order(c.field, c.x1, c.span, grad(phi)(c.x1), hessian_phi(c.x1), hessian=True)
    (xx, _), (tx, tt) = jacrev(grad(c.loss, argnums=(0, 1)), argnums=(0, 1))(c.x0, c.theta)
    assert error(got.q_xx, xx) < LIMIT
    assert error(got.q_theta_x, tx) < LIMIT
    assert error(got.q_theta_theta, tt) < LIMIT
    # The two modes answer different questions on a nonlinear field.
    jt = jacobians(field, span)[1]
    assert error(jt.T @ hessian_phi(c.x1) @ jt, tt) > 1e-3


@CASES
def test_low_rank_factors_rebuild_the_matrices(field: str, span: str) -> None:
    c = case(field, span)
    root = torch.linspace(-1, 1, 5 * M, dtype=torch.float64).reshape(5, M).sin()
    q, p = low_rank(c.field, c.x1, c.span, root)
    assert q.shape == (5, M)
    assert p.shape == (5, c.theta.numel())
    exact = second_order(c.field, c.x1, c.span, root[0], root.T @ root)
    jx, jt = jacobians(field, span)
    for left, right, matrix, reference in (
        (q, q, exact.q_xx, jx.T @ root.T @ root @ jx),
        (p, q, exact.q_theta_x, jt.T @ root.T @ root @ jx),
        (p, p, exact.q_theta_theta, jt.T @ root.T @ root @ jt),
    ):
        assert error(left.T @ right, reference) < LIMIT
        assert error(left.T @ right, matrix) < LIMIT


def test_rank_one_factor_of_the_gradient_is_the_adjoint() -> None:
    c = case("time", "shifted")
    phi_x = grad(phi)(c.x1)
    q, p = low_rank(c.field, c.x1, c.span, phi_x[None])
    full = second_order(c.field, c.x1, c.span, phi_x, torch.outer(phi_x, phi_x))
    assert error(q[0], full.q_x) < LIMIT
    assert error(p[0], full.q_theta) < LIMIT


def test_error_shrinks_with_the_tolerance() -> None:
    c = case("time", "unit")
    reference = torch.autograd.functional.jacobian(lambda x: c.terminal(x, c.theta), c.x0)
    phi_x = grad(phi)(c.x1)
    errors = []
    for tol in (1e-4, 1e-7, 1e-10):
        q_x = second_order(c.field, c.x1, c.span, phi_x, torch.eye(M).double(), rtol=tol, atol=tol)
        errors.append(error(q_x.q_x, reference.T @ phi_x))
    assert errors[0] > 10 * errors[1]
    assert errors[1] > errors[2]


def test_a_field_without_parameters_and_float32() -> None:
    class Decay(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return -2 * x

    x1 = torch.ones(2)
    got = second_order(Decay(), x1, (0.0, 0.5), x1, torch.eye(2), rtol=1e-6, atol=1e-6)
    assert got.q_theta.shape == (0,)
    assert got.q_xx.dtype == torch.float32
    torch.testing.assert_close(got.q_x, x1 * torch.tensor(-1.0).exp())
    torch.testing.assert_close(got.q_xx, torch.eye(2) * torch.tensor(-2.0).exp())


def test_results_carry_no_graph_and_leave_the_field_alone() -> None:
    c = case("autonomous", "unit")
    got = second_order(c.field, c.x1, c.span, grad(phi)(c.x1), hessian_phi(c.x1))
    assert not any(part.requires_grad for part in got)
    assert all(p.grad is None for p in c.field.parameters())
    assert torch.equal(c.theta, torch.cat([p.detach().reshape(-1) for p in c.field.parameters()]))


def test_annotated_shapes_hold() -> None:
    c = case("autonomous", "unit")
    checked = jaxtyped(typechecker=beartype)
    checked(second_order)(c.field, c.x1, c.span, grad(phi)(c.x1), hessian_phi(c.x1))
    checked(low_rank)(c.field, c.x1, c.span, torch.eye(M).double())


class Blowup(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return -(x**2)


def test_a_failed_solve_names_itself() -> None:
    x1 = torch.ones(1, dtype=torch.float64)  # backwards in time x grows to infinity at t = 1
    with pytest.raises(SolverError) as caught:
        second_order(Blowup(), x1, (0.0, 2.0), x1, x1[None], rtol=1e-5, atol=1e-5)
    assert caught.value.reason == "step underflow"
    assert caught.value.nfe > 0
    assert caught.value.dt is not None
    assert caught.value.time == pytest.approx(1.0, abs=1e-3)


def test_a_non_finite_field_names_itself() -> None:
    class Undefined(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.sqrt(x - 1)

    x1 = torch.full((1,), 0.5, dtype=torch.float64)
    with pytest.raises(SolverError) as caught:
        low_rank(Undefined(), x1, (0.0, 1.0), x1[None])
    assert caught.value.reason == "non-finite state"
    assert caught.value.dt is None


class Narrowing(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x[:1]


EYE = torch.eye(M).double()
ONE = torch.ones(M).double()
MISTAKES = {
    "batch": ({"x1": ONE[None]}, "one sample"),
    "integer state": ({"x1": ONE.long()}, "floating-point"),
    "float32 state": ({"x1": ONE.float()}, "convert the field"),
    "gradient shape": ({"phi_x": ONE[:2]}, "phi_x has shape"),
    "gradient dtype": ({"phi_x": ONE.float()}, "phi_x is torch.float32"),
    "curvature shape": ({"phi_xx": ONE}, "phi_xx has shape"),
    "curvature symmetry": ({"phi_xx": EYE + torch.diag(ONE[1:], 1)}, "not symmetric"),
    "empty interval": ({"t_span": (1.0, 1.0)}, "two different"),
    "three times": ({"t_span": (0.0, 0.5, 1.0)}, "two different"),
    "infinite time": ({"t_span": (0.0, float("inf"))}, "finite"),
    "wrong width": ({"field": Narrowing()}, "returns shape"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    arguments = {"field": case("autonomous", "unit").field, "x1": ONE, "t_span": (0.0, 1.0)}
    arguments |= {"phi_x": ONE, "phi_xx": EYE} | changes
    with pytest.raises(ValueError, match=message):
        second_order(**arguments)


def test_low_rank_wants_a_matrix_of_factors() -> None:
    field = case("autonomous", "unit").field
    for ys in (ONE, torch.empty(0, M).double()):
        with pytest.raises(ValueError, match="R >= 1 factors"):
            low_rank(field, ONE, (0.0, 1.0), ys)
    with pytest.raises(ValueError, match="ys has shape"):
        low_rank(field, ONE, (0.0, 1.0), torch.ones(2, M + 1).double())
