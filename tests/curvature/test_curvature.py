"""Fisher and Gauss-Newton curvature: exact columns, unbiased draws, and the one extra call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from snopt import ODEBlock, SNOpt
from snopt.curvature.loss_hessian import loss_hessian_sqrt_columns
from tests.support import problems
from tests.support.problems import GRADIENTS


def softmax_hessian(logits: Tensor) -> Tensor:
    return jacrev(jacrev(lambda z: -torch.log_softmax(z, 0)[1]))(logits)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_ggn_columns_are_a_root_of_the_loss_hessian(likelihood: str) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(5, 4, dtype=torch.float64)
    columns = [5 * c for c in loss_hessian_sqrt_columns(outputs, likelihood, "ggn", 0)]
    for n in range(5):
        total = sum(torch.outer(c[n], c[n]) for c in columns)
        exact = (
            softmax_hessian(outputs[n]) if likelihood == "categorical" else torch.eye(4).double()
        )
        torch.testing.assert_close(total, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_fisher_columns_are_unbiased(likelihood: str) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(1, 4, dtype=torch.float64).expand(200_000, -1)
    (column,) = loss_hessian_sqrt_columns(outputs, likelihood, "fisher", 0)
    column = 200_000 * column
    exact = softmax_hessian(outputs[0]) if likelihood == "categorical" else torch.eye(4).double()
    torch.testing.assert_close(column.T @ column / 200_000, exact, rtol=0, atol=0.02)
    # The mean cotangent of outcomes drawn from the model is zero.
    torch.testing.assert_close(column.mean(0), torch.zeros(4).double(), rtol=0, atol=0.01)


def test_gaussian_outputs_of_any_shape() -> None:
    outputs = torch.randn(3, 2, 4)
    assert len(list(loss_hessian_sqrt_columns(outputs, "gaussian", "ggn", 0))) == 8
    assert next(loss_hessian_sqrt_columns(outputs, "gaussian", "fisher", 0)).shape == outputs.shape
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        next(loss_hessian_sqrt_columns(outputs, "categorical", "ggn", 0))


def build(kind: str = "adjoint") -> nn.Module:
    return problems.model(
        ODEBlock(problems.field(), gradient=kind, method="rk4", options={"steps": 4})
    )


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_average_of_fisher_draws_is_the_ggn(kind: str, likelihood: str) -> None:
    model, x = build(kind), torch.randn(720, 5, dtype=torch.float64)
    pairs = {}
    for curvature, draws in (("ggn", 1), ("fisher", 5)):
        optimizer = SNOpt(model, rule="paper", lr=0.0, curvature=curvature, refresh_every=1)
        totals: dict[str, list[Tensor]] = {}
        for _ in range(draws):
            optimizer.zero_grad()
            outputs = model(x)
            optimizer.curvature_pass(outputs, likelihood)
            outputs.square().mean().backward()
            optimizer.step()
            for name, pair in optimizer.factors().items():
                sums = totals.setdefault(name, [torch.zeros_like(f) for f in pair])
                for total, factor in zip(sums, pair, strict=True):
                    total += factor / draws
        pairs[curvature] = totals
    for name, (a, b) in pairs["ggn"].items():
        torch.testing.assert_close(pairs["fisher"][name][0], a, rtol=1e-9, atol=1e-12)
        error = (pairs["fisher"][name][1] - b).norm() / b.norm()
        assert error < 0.15, name


@pytest.mark.parametrize("curvature", ["fisher", "ggn"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_curvature_pass_leaves_gradients_and_solves_alone(kind: str, curvature: str) -> None:
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    grads, evaluations = [], []
    for used in (False, True):
        torch.manual_seed(0)
        field = problems.field()
        block = ODEBlock(field, gradient=kind, options={"warm_start": True})
        model = problems.model(block)
        optimizer = SNOpt(model, rule="paper", lr=0.0, curvature=curvature, refresh_every=2)
        for _ in range(2):
            optimizer.zero_grad()
            outputs = model(x)
            if used:
                optimizer.curvature_pass(outputs, "gaussian")
            problems.squares(y)(outputs).backward()
            if used:
                optimizer.step()
        grads.append(problems.gradients(model))
        evaluations.append((block.nfe_forward, block.nfe_backward))
    assert torch.equal(*grads)
    assert evaluations[0] == evaluations[1]
    assert block.nfe_curvature > 0


def test_curvature_pass_does_nothing_on_ordinary_steps() -> None:
    model, x = build(), torch.randn(7, 5).double()
    optimizer = SNOpt(model, rule="paper", curvature="ggn", refresh_every=3)
    spent = []
    for _ in range(6):
        optimizer.zero_grad()
        outputs = model(x)
        before = model[1].nfe_curvature
        optimizer.curvature_pass(outputs, "gaussian")
        spent.append(model[1].nfe_curvature > before)
        outputs.square().mean().backward()
        optimizer.step()
    assert spent == [True, False, False] * 2


@pytest.mark.parametrize("curvature", ["fisher", "ggn"])
def test_a_forgotten_pass_is_an_error(curvature: str) -> None:
    model, x = build(), torch.randn(7, 5).double()
    optimizer = SNOpt(model, rule="paper", curvature=curvature)
    model(x).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"curvature_pass\(outputs\).*between"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"likelihood='poisson'.*categorical"):
        optimizer.curvature_pass(model(x), "poisson")


def test_empirical_needs_no_extra_call_and_ignores_it() -> None:
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    factors = []
    for extra in (False, True):
        model = build()
        optimizer = SNOpt(model, rule="paper", lr=0.0)
        outputs = model(x)
        if extra:
            optimizer.curvature_pass(outputs)
        problems.squares(y)(outputs).backward()
        optimizer.step()
        factors.append(optimizer.factors())
    for name, pair in factors[0].items():
        assert torch.equal(pair[0], factors[1][name][0])
        assert torch.equal(pair[1], factors[1][name][1])


def test_draws_follow_the_seed_and_differ_between_refreshes() -> None:
    x = torch.randn(7, 5).double()

    def run(seed: int) -> list[Tensor]:
        model = build()
        optimizer = SNOpt(
            model, rule="paper", lr=0.0, curvature="fisher", refresh_every=1, seed=seed
        )
        found = []
        for _ in range(2):
            optimizer.zero_grad()
            outputs = model(x)
            optimizer.curvature_pass(outputs, "categorical")
            outputs.square().mean().backward()
            optimizer.step()
            found.append(optimizer.factors()["4"][1])
        return found

    one, two, other = run(0), run(0), run(7)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


def test_draws_leave_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    next(loss_hessian_sqrt_columns(torch.ones(3, 4), "categorical", "fisher", 0))
    assert torch.equal(torch.random.get_rng_state(), before)
