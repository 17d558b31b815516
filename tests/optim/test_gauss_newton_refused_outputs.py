"""What Gauss-Newton steps from all outputs refuse, and what they tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, SNOpt
from tests.support.jacobians import flat
from tests.support.output_steps import (
    PLAIN,
    D,
    N,
    inputs,
    like,
    made,
    same,
    step,
)


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


NO_TENSORS: dict[str, dict[str, Any]] = {
    "loss": {"loss": 1.5},
    "targets": {"targets": [0.0] * N},
    "outputs": {},
}


@pytest.mark.parametrize("kind", NO_TENSORS)
@pytest.mark.parametrize("rows", ["samples", "outputs"])
def test_what_is_no_tensor_is_named(kind: str, rows: str) -> None:
    model, _ = made("few outputs")
    optimizer = SNOpt(model, rule="gauss_newton", rows=rows)
    outputs = model(inputs())
    found = (outputs, outputs) if kind == "outputs" else outputs
    with pytest.raises(TypeError, match=f"given {kind} of type .*, expected a tensor"):
        optimizer.curvature_pass(found, "gaussian", **NO_TENSORS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("likelihood", ["gaussian", "binary", "categorical"])
@pytest.mark.parametrize("rows", ["samples", "outputs"])
def test_an_empty_batch_is_told_to_be_left_out(likelihood: str, rows: str) -> None:
    model, _ = made("few outputs")
    optimizer = SNOpt(model, rule="gauss_newton", rows=rows)
    outputs = model(inputs()[:0])
    with pytest.raises(ValueError, match=r"outputs of shape \(0, 2\).*leave out empty batches"):
        optimizer.curvature_pass(outputs, likelihood, loss=outputs.sum())


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
def test_a_pass_after_backward_is_told(memory: float) -> None:
    model, _ = made("few outputs")
    optimizer = GaussNewton(model, memory=memory)
    outputs = model(inputs())
    loss = outputs.square().mean()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"before loss\.backward\(\)"):
        optimizer.curvature_pass(outputs, "gaussian", loss=loss)


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
