"""Gauss-Newton steps of losses of every scale and kind: the dense solution's, or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.dense import dense_step, same, stepping

N = 6


def net(outputs: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def inputs() -> Tensor:
    return torch.randn(N, 3, dtype=torch.float64)


Loss = Callable[..., Tensor]
SQUARES: dict[str, tuple[Loss, float]] = {
    "mean": (functional.mse_loss, 1.0),
    "sum": (lambda f, y: functional.mse_loss(f, y, reduction="sum"), N),
    "half": (lambda f, y: 0.5 * functional.mse_loss(f, y), 0.5),
}


@pytest.mark.parametrize("told", ["targets", "loss", "both"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", SQUARES)
def test_squared_errors_of_every_scale(kind: str, outputs: int, told: str) -> None:
    model, x, y = net(outputs), inputs(), torch.randn(N, outputs, dtype=torch.float64)
    loss, factor = SQUARES[kind]
    factor = factor * outputs if kind == "sum" else factor

    def one(k: int) -> Tensor:
        return factor * functional.mse_loss(model(x[k : k + 1]), y[k : k + 1])

    expected = dense_step(model, N, one)
    optimizer = stepping(model)
    predicted = model(x)
    value = loss(predicted, y)
    known = {"targets": y, "loss": value}
    chosen = known if told == "both" else {told: known[told]}
    optimizer.curvature_pass(predicted, "gaussian", **chosen)
    value.backward()
    optimizer.step()
    same(model, expected)


def test_targets_may_lack_the_last_dimension_of_one() -> None:
    model, x, y = net(1), inputs(), torch.randn(N, dtype=torch.float64)
    expected = dense_step(model, N, lambda k: (model(x[k : k + 1]).squeeze() - y[k]) ** 2)
    optimizer = stepping(model)
    predicted = model(x)
    optimizer.curvature_pass(predicted, "gaussian", targets=y)
    functional.mse_loss(predicted.squeeze(1), y).backward()
    optimizer.step()
    same(model, expected)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_outcomes(reduction: str, outputs: int, told: bool) -> None:
    model, x = net(outputs), inputs()
    y = torch.randint(2, (N, outputs)).double()
    bce = functional.binary_cross_entropy_with_logits
    factor = 1 if reduction == "mean" else N * outputs
    expected = dense_step(model, N, lambda k: factor * bce(model(x[k : k + 1]), y[k : k + 1]))
    optimizer = stepping(model)
    logits = model(x)
    optimizer.curvature_pass(logits, "binary", targets=y if told else None)
    bce(logits, y, reduction=reduction).backward()
    optimizer.step()
    same(model, expected)


def test_binary_logits_of_shape_n() -> None:
    model, x, y = net(1), inputs(), torch.randint(2, (N,)).double()
    bce = functional.binary_cross_entropy_with_logits
    expected = dense_step(model, N, lambda k: bce(model(x[k : k + 1])[:, 0], y[k : k + 1]))
    optimizer = stepping(model)
    logits = model(x).squeeze(1)
    optimizer.curvature_pass(logits, "binary", targets=y)
    bce(logits, y).backward()
    optimizer.step()
    same(model, expected)


@pytest.mark.parametrize("factor", [0.25, 1.0, N])
@pytest.mark.parametrize("told", [True, False])
def test_cross_entropy_of_every_scale(factor: float, told: bool) -> None:
    model, x, y = net(4), inputs(), torch.randint(4, (N,))
    ce = functional.cross_entropy
    expected = dense_step(model, N, lambda k: factor * ce(model(x[k : k + 1]), y[k : k + 1]))
    optimizer = stepping(model)
    logits = model(x)
    optimizer.curvature_pass(logits, targets=y if told else None)
    (factor * ce(logits, y)).backward()
    optimizer.step()
    same(model, expected)


def test_ignored_labels_have_no_loss() -> None:
    model, x, y = net(4), inputs(), torch.randint(4, (N,))
    y[2] = -100
    ce = functional.cross_entropy
    kept = [k for k in range(N) if k != 2]
    optimizer = stepping(model)
    logits = model(x)
    optimizer.curvature_pass(logits, targets=y)
    ce(logits, y).backward()
    expected = dense_step_of(model, kept, lambda k: ce(model(x[k : k + 1]), y[k : k + 1]))
    optimizer.step()
    same(model, expected)


def dense_step_of(
    model: nn.Module, kept: list[int], loss: Callable[[int], Tensor]
) -> dict[str, Tensor]:
    return dense_step(model, len(kept), lambda k: loss(kept[k]))


WRONG: dict[str, tuple[str, Loss]] = {
    "absolute": ("gaussian", functional.l1_loss),
    "huber": ("gaussian", lambda f, y: functional.smooth_l1_loss(f, y, beta=0.1)),
    "binary": (
        "gaussian",
        lambda f, y: functional.binary_cross_entropy_with_logits(f, (y > 0).double()),
    ),
    "squares": ("binary", lambda f, y: functional.mse_loss(f.sigmoid(), (y > 0).double())),
    "weights": (
        "binary",
        lambda f, y: functional.binary_cross_entropy_with_logits(
            f, (y > 0).double(), pos_weight=f.new_tensor(3.0)
        ),
    ),
    "negative": ("gaussian", lambda f, y: -functional.mse_loss(f, y)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_loss_of_another_kind_is_refused(kind: str) -> None:
    likelihood, loss = WRONG[kind]
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)
    predicted = model(x)
    targets = y if likelihood == "gaussian" else (y > 0).double()
    optimizer.curvature_pass(predicted, likelihood, targets=targets)
    with pytest.raises(ValueError, match=f"not that of a {likelihood} likelihood"):
        loss(predicted, y).backward()


def test_a_loss_whose_factor_wanders_is_no_squared_error() -> None:
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)

    def descend() -> None:
        optimizer.zero_grad()
        predicted = model(x)
        loss = functional.l1_loss(predicted, y)
        optimizer.curvature_pass(predicted, "gaussian", loss=loss)
        loss.backward()
        optimizer.step()

    descend()
    with pytest.raises(ValueError, match="no multiple of the squared error"):
        descend()


@pytest.mark.parametrize("kind", SQUARES)
def test_batches_and_outputs_may_change_their_number(kind: str) -> None:
    """As where training begins with the first part of each trajectory."""
    model, x, y = net(4), inputs(), torch.randn(N, 4, dtype=torch.float64)
    optimizer = stepping(model)
    loss, factor = SQUARES[kind]
    for samples, outputs in ((N, 1), (N, 2), (4, 4), (5, 3)):
        scale = factor * outputs * samples / N if kind == "sum" else factor
        expected = dense_step(
            model,
            samples,
            lambda k, o=outputs, s=scale: s * functional.mse_loss(model(x[k])[:o], y[k, :o]),
        )
        optimizer.zero_grad()
        predicted = model(x[:samples])[:, :outputs]
        value = loss(predicted, y[:samples, :outputs])
        optimizer.curvature_pass(predicted, "gaussian", loss=value)
        value.backward()
        optimizer.step()
        same(model, expected)


def test_penalties_show_in_the_loss_that_is_told() -> None:
    model, x, y = net(4), inputs(), torch.randint(4, (N,))
    optimizer = stepping(model)
    logits = model(x)
    loss = functional.cross_entropy(logits, y) + 0.1 * model[0].weight.square().sum()
    optimizer.curvature_pass(logits, loss=loss)
    with pytest.raises(ValueError, match="weight_decay"):
        loss.backward()


def test_a_closure_tells_the_loss_of_squared_errors() -> None:
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        predicted = model(x)
        optimizer.curvature_pass(predicted, "gaussian")
        loss = functional.mse_loss(predicted, y)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="pass targets= or loss="):
        optimizer.step(closure)


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss])
def test_a_batch_that_comes_twice_tells_the_factor(loss: Loss) -> None:
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)

    def descend() -> None:
        optimizer.zero_grad()
        predicted = model(x)
        optimizer.curvature_pass(predicted, "gaussian")
        loss(predicted, y).backward()
        optimizer.step()

    descend()
    with pytest.raises(ValueError, match="this loss is another one"):
        descend()


def test_half_squared_errors_need_no_targets() -> None:
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)
    for _ in range(6):
        expected = dense_step(model, N, lambda k: (model(x[k]) - y[k]).square().sum() / 2)
        optimizer.zero_grad()
        predicted = model(x)
        optimizer.curvature_pass(predicted, "gaussian")
        ((predicted - y).square().sum(1) / 2).mean().backward()
        optimizer.step()
        same(model, expected)


def test_what_nobody_checks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, x, y = net(1), inputs(), torch.randn(N, 1, dtype=torch.float64)
    optimizer = stepping(model)
    predicted = model(x)
    optimizer.curvature_pass(predicted, "gaussian")
    with caplog.at_level(logging.WARNING):
        ((predicted - y).square().sum(1) / 2).mean().backward()
    assert "unchecked" in caplog.text


def test_logits_of_one_class_are_refused() -> None:
    model, x = net(1), inputs()
    optimizer = stepping(model)
    logits = model(x)
    optimizer.curvature_pass(logits)
    with pytest.raises(ValueError, match="likelihood='binary'"):
        functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()


def test_targets_of_another_size_are_refused() -> None:
    model, x = net(3), inputs()
    optimizer = stepping(model)
    predicted = model(x)
    optimizer.curvature_pass(predicted, "gaussian", targets=torch.zeros(N, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"targets have shape \(6,\)"):
        predicted.square().mean().backward()
