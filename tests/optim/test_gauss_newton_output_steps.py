"""What else is in a step from all outputs: penalties, clipping, momentum, groups, resuming."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, SNOptPreconditioner
from tests.support.jacobians import DAMPING, dense_step, flat, jacobian
from tests.support.output_steps import (
    PLAIN,
    inputs,
    like,
    made,
    same,
    step,
)


def fitted(model: nn.Module, optimizer: GaussNewton, x: Tensor, y: Tensor) -> None:
    """One step on squared errors."""
    optimizer.zero_grad()
    outputs = model(x)
    loss = functional.mse_loss(outputs, y)
    optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
    loss.backward()
    optimizer.step()


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
        fitted(model, optimizer, x, y)
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
            fitted(model, optimizer, x, y)
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


@pytest.mark.parametrize("rows", ["samples", "outputs", "products"])
def test_a_rate_of_zero_is_like_freezing(rows: str) -> None:
    """From one step to the next: what is left of the last step moves nothing either."""
    x = inputs()
    ends = []
    for frozen in (False, True):
        model, _ = made("few outputs")
        y = like(model(x))
        settings = {**PLAIN, "momentum": 0.9, "memory": 0 if rows == "products" else 2.0**30}
        settings["rows"] = "samples" if rows == "samples" else "outputs"
        optimizer = GaussNewton([{"params": model[0]}, {"params": model[2]}], 0.5, **settings)
        for k in range(4):
            if k == 2:
                kept = flat(model[0])
                model[0].requires_grad_(not frozen)
                optimizer.param_groups[0]["lr"] = 0.5 if frozen else 0.0
            fitted(model, optimizer, x, y)
        model.requires_grad_(True)
        assert torch.equal(flat(model[0]), kept)
        ends.append(flat(model))
    same(*ends)


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
def test_a_schedule_of_the_damping_begins_at_zero(memory: float) -> None:
    x = inputs()
    ends = []
    for damping in (DAMPING, lambda step: DAMPING if step == 0 else 1e6):
        model, _ = made("few outputs")
        y = like(model(x))
        loss = lambda f, y=y: functional.mse_loss(f, y)  # noqa: E731
        ends.append(step(model, x, loss, targets=y, memory=memory, damping=damping))
    same(*ends)
