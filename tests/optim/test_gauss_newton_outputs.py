"""Gauss-Newton steps from all outputs are dense algebra on the Jacobians of torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, ODEBlock, SNOpt, SNOptPreconditioner
from tests.support.jacobians import DAMPING, dense_step, flat, jacobian
from tests.support.problems import Field

N, D = 5, 3
TIMES = torch.linspace(0.0, 1.0, 4, dtype=torch.float64)
PLAIN = {"damping": DAMPING, "trust": 1e9, "backtrack": math.inf}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.a(x)), self.a.weight.T)


class Trajectories(nn.Module):
    """(N, D) to (T, N, D), time first."""

    def __init__(self, gradient: str, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(D, D)
        self.block = ODEBlock(Field(), gradient=gradient, **options)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(self.stem(x), TIMES)
        return found


def steps(gradient: str) -> nn.Module:
    return Trajectories(gradient, method="rk4", options={"steps": 2})


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "few outputs": (lambda: nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2)), 0),
    "many outputs": (lambda: nn.Sequential(nn.Linear(D, 1), nn.Tanh(), nn.Linear(1, 4)), 0),
    "in place": (lambda: nn.Sequential(nn.Linear(D, 4), nn.ELU(inplace=True), nn.Linear(4, 2)), 0),
    "norm": (lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Linear(4, 2)), 0),
    "coupled": (
        lambda: nn.Sequential(
            nn.Linear(D, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
        ),
        0,
    ),
    "tied": (Tied, 0),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, 2), nn.Flatten()),
        0,
    ),
    "direct": (lambda: steps("direct"), 1),
    "checkpoint": (lambda: steps("checkpoint"), 1),
}


def made(kind: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    build, dim = MODELS[kind]
    return build().double(), dim


def inputs() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def like(outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)


def step(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    likelihood: str = "gaussian",
    targets: Tensor | None = None,
    batch_dim: int = 0,
    between: Callable[[], Any] = lambda: None,
    **settings: Any,
) -> Tensor:
    """One step; what it subtracts from the flat parameters."""
    optimizer = GaussNewton(model, **{**PLAIN, **settings})
    before = flat(model)
    optimizer.zero_grad()
    outputs = model(x)
    value = loss(outputs)
    optimizer.curvature_pass(outputs, likelihood, targets=targets, loss=value, batch_dim=batch_dim)
    value.backward()
    between()
    optimizer.step()
    return before - flat(model)


def same(found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    assert float((found - expected).norm()) <= rtol * float(expected.norm())


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_is_the_dense_solution(kind: str, memory: float) -> None:
    if memory == 0 and kind == "checkpoint":
        pytest.skip("refused")
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


# -- what else is in a step ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["few outputs", "many outputs"])
def test_penalties_are_part_of_the_gradient(kind: str) -> None:
    model, _ = made(kind)
    x = inputs()
    y = like(model(x))
    expected = dense_step(
        model,
        lambda m: m(x),
        lambda f: functional.mse_loss(f, y.flatten()),
        extra=0.1 * flat(model),
    )

    def penalised() -> None:
        for p in model.parameters():
            p.grad += 0.1 * p.detach()

    same(step(model, x, lambda f: functional.mse_loss(f, y), "gaussian", y, 0, penalised), expected)


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
@pytest.mark.parametrize("kind", ["few outputs", "many outputs"])
def test_clipped_gradients_give_a_shorter_step(kind: str, memory: float) -> None:
    model, _ = made(kind)
    x = inputs()
    y = like(model(x))
    expected = dense_step(model, lambda m: m(x), lambda f: functional.mse_loss(f, y.flatten()))

    def clipped() -> None:
        for p in model.parameters():
            p.grad *= 0.3

    loss = lambda f: functional.mse_loss(f, y)  # noqa: E731
    found = step(model, x, loss, targets=y, between=clipped, memory=memory)
    same(found, 0.3 * expected)


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
def test_momentum_decay_and_rates_of_groups_are_part_of_the_solve(memory: float) -> None:
    model, _ = made("few outputs")
    x, momentum, decay, lr = inputs(), 0.6, 0.2, 0.5
    y = like(model(x))
    groups = [{"params": model[0], "lr": 0.1 * lr}, {"params": model[2]}]
    optimizer = GaussNewton(
        groups, lr, **{**PLAIN, "momentum": momentum, "weight_decay": decay, "memory": memory}
    )
    first = sum(p.numel() for p in model[0].parameters())
    weights = torch.ones_like(flat(model))
    weights[:first] = 0.1
    past = torch.zeros_like(weights)
    for _ in range(3):
        before = flat(model)
        f, rows = jacobian(model, lambda m: m(x))
        rows, residual = rows * 0.2**0.5, (f - y.flatten()) * 0.2**0.5  # mean of ten squares
        fade = min(1.0, float(residual.norm()))
        prior = momentum * past + fade * decay * weights * before
        matrix = rows.T @ rows + torch.diag(fade * DAMPING / weights)
        past = prior + torch.linalg.solve(matrix, rows.T @ (residual - rows @ prior))
        optimizer.zero_grad()
        outputs = model(x)
        loss = functional.mse_loss(outputs, y)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        loss.backward()
        optimizer.step()
        same(before - flat(model), lr * past, 1e-5)


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
def test_frozen_parameters_stay(memory: float) -> None:
    model, _ = made("few outputs")
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    kept = model[0].weight.clone(), model[2].bias.clone()
    x = inputs()
    y = like(model(x))
    expected = dense_step(model, lambda m: m(x), lambda f: functional.mse_loss(f, y.flatten()))
    loss = lambda f: functional.mse_loss(f, y)  # noqa: E731
    same(step(model, x, loss, targets=y, memory=memory), expected)
    assert torch.equal(kept[0], model[0].weight)
    assert torch.equal(kept[1], model[2].bias)


def test_evaluation_mode_and_other_passes_do_no_harm() -> None:
    model, _ = made("few outputs")
    x = inputs()
    y = like(model(x))
    loss = lambda f: functional.mse_loss(f, y)  # noqa: E731
    expected = dense_step(model, lambda m: m(x), lambda f: functional.mse_loss(f, y.flatten()))
    model(x[:2]).sum()  # a pass that nobody uses
    model.eval()
    same(step(model, x, loss, targets=y), expected)


def test_the_preconditioner_alone_takes_the_same_step() -> None:
    x = inputs()
    model, _ = made("norm")
    y = like(model(x))
    loss = lambda f: functional.mse_loss(f, y)  # noqa: E731
    whole = step(model, x, loss, targets=y)
    model, _ = made("norm")
    own = {n: v for n, v in PLAIN.items() if n == "damping"}
    alone = SNOptPreconditioner(model, rule="gauss_newton", rows="outputs", **own)
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    before = flat(model)
    outputs = model(x)
    value = loss(outputs)
    alone.curvature_pass(outputs, "gaussian", targets=y, loss=value)
    value.backward()
    alone.step()
    sgd.step()
    same(before - flat(model), whole)


def test_all_parameters_are_covered() -> None:
    model, _ = made("norm")
    found = GaussNewton(model).coverage()
    assert found.fraction == 1.0
    assert not found.fallback
    assert "1.weight" in found.preconditioned


def test_a_resumed_run_goes_on_the_same() -> None:
    x = inputs()
    ends = []
    for resumed in (False, True):
        model, _ = made("few outputs")
        y = like(model(x))
        optimizer = GaussNewton(model, 0.5, momentum=0.5, damping=0.1)
        for k in range(4):
            if resumed and k == 2:
                saved = optimizer.state_dict()
                optimizer.close()
                optimizer = GaussNewton(model, 0.5, momentum=0.5, damping=0.1)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            outputs = model(x)
            loss = functional.mse_loss(outputs, y)
            optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
            loss.backward()
            optimizer.step()
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_the_random_numbers_of_the_loop_are_left_alone() -> None:
    model, _ = made("few outputs")
    x = inputs()
    y = like(model(x))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    step(model, x, lambda f: functional.mse_loss(f, y), targets=y)
    assert torch.equal(torch.rand(1), expected)


# -- refusals --------------------------------------------------------------------------------------


def passed(model: nn.Module, x: Tensor, **given: Any) -> None:
    optimizer = GaussNewton(model)
    outputs = model(x)
    value = given.pop("loss", lambda f: f.square().mean())(outputs)
    optimizer.curvature_pass(outputs, **{"likelihood": "gaussian", "loss": value, **given})


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no loss": ("needs the loss before backward", {"loss": lambda f: None}),
    "a loss of many": ("needs the loss before backward", {"loss": lambda f: f.square()}),
    "targets of others": (
        "not that of a gaussian likelihood",
        {"targets": torch.full((N, 2), 9.0, dtype=torch.float64), "loss": lambda f: f.exp().sum()},
    ),
    "a shape": (r"targets have shape \(2, 5\)", {"targets": torch.zeros(2, N)}),
    "labels": ("class indices", {"likelihood": "categorical", "targets": torch.zeros(N)}),
    "smoothing": (
        "without label smoothing",
        {
            "likelihood": "categorical",
            "targets": torch.tensor([0, 1, 0, 1, 0]),
            "loss": lambda f: functional.cross_entropy(
                f.repeat(1, 1), torch.tensor([0, 1, 0, 1, 0]), label_smoothing=0.3
            ),
        },
    ),
    "a dimension": ("batch_dim=2", {"batch_dim": 2}),
    "time before classes": ("with batch_dim=1", {"likelihood": "categorical", "batch_dim": 1}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_it_cannot_take_is_said(kind: str) -> None:
    words, given = WRONG[kind]
    torch.manual_seed(0)
    outputs = 3 if kind == "smoothing" else 2
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    with pytest.raises(ValueError, match=words):
        passed(model, inputs(), **dict(given))


def test_a_loss_of_other_outputs_is_refused() -> None:
    model, _ = made("few outputs")
    other = model(inputs()).square().mean()
    with pytest.raises(ValueError, match="does not come from these outputs"):
        passed(model, inputs(), loss=lambda f: other)


def test_without_the_jacobian_solves_must_be_direct() -> None:
    model, _ = made("checkpoint")
    x = inputs()
    optimizer = GaussNewton(model, memory=0.0)
    outputs = model(x)
    loss = outputs.square().mean()
    with pytest.raises(ValueError, match="gradient='direct'"):
        optimizer.curvature_pass(outputs, "gaussian", loss=loss, batch_dim=1)


def test_scaled_gradients_are_told() -> None:
    model, _ = made("few outputs")
    x = inputs()

    def scaled() -> None:
        for p in model.parameters():
            p.grad *= 65536.0

    with pytest.raises(ValueError, match=r"scaler\.unscale_"):
        step(model, x, lambda f: f.square().mean(), between=scaled)


def test_half_precision_is_close() -> None:
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3))
        model = model.to(torch.float64 if dtype == torch.float64 else torch.float32)
        x, y = inputs().to(model[0].weight), torch.tensor([0, 2, 1, 2, 1])
        optimizer = GaussNewton(model, **PLAIN)
        before = flat(model)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float64):
            outputs = model(x)
        loss = functional.cross_entropy(outputs, y)
        optimizer.curvature_pass(outputs, targets=y, loss=loss)
        loss.backward()
        optimizer.step()
        found.append((before - flat(model)).double())
    same(found[1], found[0], 0.1)


def test_a_second_pass_before_the_step_is_refused() -> None:
    model, _ = made("few outputs")
    optimizer = GaussNewton(model)
    for k in range(2):
        outputs = model(inputs())
        loss = outputs.square().mean()
        if k:
            with pytest.raises(RuntimeError, match="one backward pass a step"):
                optimizer.curvature_pass(outputs, "gaussian", loss=loss)
            return
        optimizer.curvature_pass(outputs, "gaussian", loss=loss)
        loss.backward()


def test_a_loop_without_the_pass_is_told_so() -> None:
    model, _ = made("few outputs")
    optimizer = GaussNewton(model)
    model(inputs()).square().mean().backward()
    with pytest.raises(RuntimeError, match="curvature_pass"):
        optimizer.step()


def test_a_loss_that_is_not_finite_moves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = made("few outputs")
    x = inputs()
    found = step(model, x, lambda f: f.square().mean() * math.nan, targets=like(model(x)))
    assert float(found.norm()) == 0
    assert "not finite" in caplog.text


def test_states_of_the_other_rows_are_refused() -> None:
    model, _ = made("few outputs")
    samples = SNOpt(model, rule="gauss_newton")
    outputs = SNOpt(model, rule="gauss_newton", rows="outputs")
    with pytest.raises(ValueError, match="saved with rows='samples'"):
        outputs.load_state_dict(samples.state_dict())
    with pytest.raises(ValueError, match="saved with rows='outputs'"):
        samples.load_state_dict(outputs.state_dict())
