"""Gauss-Newton steps from all outputs are dense algebra on the Jacobians of torch.func."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton
from tests.support.jacobians import dense_step
from tests.support.output_steps import (
    MODELS,
    D,
    N,
    Trajectories,
    inputs,
    like,
    made,
    same,
    step,
)

SOLVED = [*itertools.product(MODELS, [2.0**30, 0.0])]
SOLVED.remove(("checkpoint", 0.0))  # refused, see test_gauss_newton_refused_outputs


@pytest.mark.parametrize(("kind", "memory"), SOLVED)
def test_a_step_is_the_dense_solution(kind: str, memory: float) -> None:
    model, dim = made(kind)
    x = inputs()
    y = like(model(x))
    expected = dense_step(model, lambda m: m(x), lambda f: functional.mse_loss(f, y.flatten()))
    loss = lambda f: functional.mse_loss(f, y)  # noqa: E731
    same(step(model, x, loss, targets=y, batch_dim=dim, memory=memory), expected)


@pytest.mark.parametrize("kind", ["norm", "coupled", "tied"])
def test_passes_that_cannot_be_shared_are_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = made(kind)
    x = inputs()
    for _ in range(2):
        step(model, x, lambda f: f.square().mean())
    assert caplog.text.count("need a backward pass for each output of each sample") == 2
    assert len(caplog.records) == 2


@pytest.mark.parametrize("kind", ["few outputs", "in place", "direct", "checkpoint"])
def test_rows_are_shared_where_samples_keep_apart(kind: str) -> None:
    model, dim = made(kind)
    x = inputs()
    y = like(model(x))
    optimizer = GaussNewton(model)
    outputs = model(x)
    loss = functional.mse_loss(outputs, y)
    optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss, batch_dim=dim)
    assert not optimizer.method.rows.alone  # type: ignore[attr-defined]


def test_adjoint_gradients_give_the_step_of_the_flow(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for gradient in ("direct", "adjoint"):
        torch.manual_seed(0)
        model = Trajectories(gradient, method="dopri5", rtol=1e-8, atol=1e-8).double()
        x = inputs()[:2]
        y = like(model(x))
        loss = lambda f, y=y: functional.mse_loss(f, y)  # noqa: E731
        found.append(step(model, x, loss, targets=y, batch_dim=1))
    same(found[1], found[0], 1e-4)
    assert caplog.text.count("each of the 24 outputs takes a backward solve of its own") == 1
    assert caplog.text.count("a block's gradient comes from the adjoint equation") == 1


def test_a_linear_model_is_solved_in_one_step() -> None:
    x, model = inputs(), nn.Linear(D, 2).double()
    y = like(model(x))
    step(model, x, lambda f: functional.mse_loss(f, y), targets=y, damping=1e-12)
    ones = torch.cat([x, torch.ones(N, 1, dtype=x.dtype)], dim=1)
    best = torch.linalg.lstsq(ones, y).solution
    torch.testing.assert_close(torch.cat([model.weight.T, model.bias[None]]).detach(), best)


# -- losses ----------------------------------------------------------------------------------------

MASK = torch.tensor([True, False, True, True, False, True, True, True, False, True])
WEIGHTS = torch.linspace(0.1, 2.0, 10, dtype=torch.float64)
SOFT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # a loss of flat errors, and its weights: derivative over error
    "mean": (lambda e: e.square().mean(), lambda e: torch.full_like(e, 0.2)),
    "sum": (lambda e: e.square().sum(), lambda e: torch.full_like(e, 2.0)),
    "mask": (lambda e: e[MASK].square().mean(), lambda e: 2.0 * MASK / MASK.sum()),
    "weights": (lambda e: (WEIGHTS * e.square()).sum() / 2, lambda e: WEIGHTS),
    "huber": (
        lambda e: functional.huber_loss(e, torch.zeros_like(e), delta=0.5, reduction="sum"),
        lambda e: (0.5 / e.abs()).clamp(max=1.0),
    ),
    "smooth L1": (
        lambda e: functional.smooth_l1_loss(e, torch.zeros_like(e), beta=0.5, reduction="sum"),
        lambda e: (1 / e.abs()).clamp(max=2.0),
    ),
    "soft L1": (
        lambda e: 2 * ((1 + e.square()).sqrt() - 1).sum(),
        lambda e: 2 / (1 + e.square()).sqrt(),
    ),
}


@pytest.mark.parametrize("kind", SOFT)
def test_masks_weights_and_robust_losses_weigh_the_entries(kind: str) -> None:
    loss, weights = SOFT[kind]
    model, _ = made("few outputs")
    x = inputs()
    y = like(model(x))
    expected = dense_step(
        model,
        lambda m: m(x),
        lambda f: loss(f - y.flatten()),
        lambda f: torch.diag(weights(f - y.flatten())).to(f),
    )
    same(step(model, x, lambda f: loss((f - y).flatten()), targets=y), expected)


def test_masks_may_hide_numbers_that_are_none() -> None:
    model, _ = made("few outputs")
    x = inputs()
    y = like(model(x)).masked_fill(~MASK.view(N, 2), math.nan)
    kept = y.nan_to_num(0.0)
    loss = lambda f: (f - kept)[MASK.view(N, 2)].square().mean()  # noqa: E731
    found = step(model, x, loss, targets=y)
    model, _ = made("few outputs")
    same(found, step(model, x, loss))  # squared errors of one weight need no targets


def test_outputs_that_are_fitted_exactly_do_no_harm() -> None:
    model, _ = made("few outputs")
    x = inputs()
    y = model(x).detach()
    y[2:] += 1
    expected = dense_step(
        model,
        lambda m: m(x)[2:],
        lambda f: (f - y[2:].flatten()).square().sum(),
    )
    same(step(model, x, lambda f: (f - y).square().sum(), targets=y), expected)


CLASSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "weights": {"weight": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)},
    "ignored": {"ignore_index": 1},
}


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_cross_entropy_takes_the_softmax_hessian(kind: str, told: bool, memory: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = inputs(), torch.tensor([0, 2, 1, 2, 1])
    loss = lambda f: functional.cross_entropy(f.view(N, 3), y, **CLASSES[kind])  # noqa: E731
    expected = dense_step(model, lambda m: m(x), loss)
    same(step(model, x, loss, "categorical", y if told else None, memory=memory), expected)


def test_logits_may_have_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 6), nn.Unflatten(1, (3, 2))).double()
    x, y = inputs(), torch.randint(3, (N, 2))
    loss = lambda f: functional.cross_entropy(f.view(N, 3, 2), y)  # noqa: E731
    expected = dense_step(model, lambda m: m(x), loss)
    same(step(model, x, loss, "categorical", y), expected)


@pytest.mark.parametrize("told", [True, False])
def test_yes_or_no_outcomes(told: bool) -> None:
    model, _ = made("few outputs")
    x = inputs()
    y = (like(model(x)) > 0).double()
    bce = functional.binary_cross_entropy_with_logits
    expected = dense_step(model, lambda m: m(x), lambda f: bce(f, y.flatten()))
    found = step(model, x, lambda f: bce(f, y), "binary", y if told else None)
    same(found, expected)
