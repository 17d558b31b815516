"""Levenberg-Marquardt control of Gauss-Newton steps, by closures and by the next pass."""

from __future__ import annotations

import doctest
import io
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.nn import functional

import snopt.optim.named
from snopt import KFAC, GaussNewton, LevenbergMarquardt, ODEBlock, SNOpt
from tests.support.jacobians import flat, jacobian
from tests.support.problems import Field


def controller(initial: float = 0.1, **settings: Any) -> LevenbergMarquardt:
    return LevenbergMarquardt(initial, **{"decay": 0.5, "every": 1, "floor": 1e-12, **settings})


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).unsqueeze(1)
    return model, x, torch.sin(2 * x)


def evaluate(model: nn.Module, optimizer: SNOpt, x: Tensor, y: Tensor, told: bool = True) -> Tensor:
    optimizer.zero_grad()
    outputs = model(x)
    loss = functional.mse_loss(outputs, y)
    optimizer.curvature_pass(outputs, "gaussian", targets=y if told else None, loss=loss)
    loss.backward()
    return loss


def half(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals and their Jacobian, of half a sum of squares that is the loss."""
    f, rows = jacobian(model, lambda m: m(x))
    scale = (2 / len(f)) ** 0.5
    return scale * (f - y.flatten()), scale * rows


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_the_ratio_is_of_the_change_that_the_quadratic_predicts(lr: float, memory: float) -> None:
    model, x, y = problem()
    seen: list[tuple[float, float]] = []

    class Watched(LevenbergMarquardt):
        def observe(self, actual: float, predicted: float) -> None:
            seen.append((actual, predicted))
            super().observe(actual, predicted)

    damping = Watched(0.1, every=1)
    optimizer = GaussNewton(model, lr, damping=damping, trust=1e9, memory=memory)
    residual, rows = half(model, x, y)
    before = flat(model)
    optimizer.step(lambda: evaluate(model, optimizer, x, y))
    moved = flat(model) - before
    d = torch.linalg.solve(rows.T @ rows + 0.1 * torch.eye(13).double(), rows.T @ residual)
    torch.testing.assert_close(moved, -lr * d)
    after, _ = half(model, x, y)
    (actual, predicted) = seen[0]
    assert actual == pytest.approx(float(after.square().sum() - residual.square().sum()) / 2)
    linear = residual + rows @ moved
    change = float(linear.square().sum() - residual.square().sum()) / 2
    assert predicted == pytest.approx(change)


@pytest.mark.parametrize("closure", [True, False])
def test_a_step_that_makes_it_worse_is_taken_back(closure: bool) -> None:
    model, x, y = problem()
    damping = controller(1e-9)
    optimizer = GaussNewton(model, 40.0, damping=damping, trust=1e9)  # far too long a step
    before = flat(model)
    if closure:
        optimizer.step(lambda: evaluate(model, optimizer, x, y))
    else:
        for _ in range(2):
            evaluate(model, optimizer, x, y)
            optimizer.step()
    assert torch.equal(flat(model), before)
    assert damping.value == 2e-9
    assert optimizer.diagnostics()["steps_rejected"] == 1


def test_the_closures_own_loss_is_compared() -> None:
    """A penalty that curvature_pass() does not know of is in the loss before a step, too."""
    model, x, y = problem()
    optimizer = GaussNewton(model, damping=controller())

    def closure() -> float:
        loss = evaluate(model, optimizer, x, y)
        penalty = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        penalty.backward()
        return float((loss + penalty).detach())

    losses = [optimizer.step(closure) for _ in range(20)]
    assert optimizer.diagnostics()["steps_rejected"] < 3
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(ValueError, match="a closure that returns the loss"):
        optimizer.step(lambda: evaluate(model, optimizer, x, y) and None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_batch_is_known_again_without_targets(dtype: torch.dtype) -> None:
    dampings = []
    for told in (True, False):
        model, x, y = problem()
        model, x, y = model.to(dtype), x.to(dtype), y.to(dtype)
        optimizer = GaussNewton(model)
        for _ in range(8):
            evaluate(model, optimizer, x, y, told)
            optimizer.step()
        dampings.append(optimizer.diagnostics()["damping"])
    assert dampings[0] == dampings[1] != 0.01


@pytest.mark.parametrize("closure", [True, False])
def test_it_ends_where_scipys_least_squares_does(closure: bool) -> None:
    model, x, y = problem()
    y = y + 0.3 * torch.cos(7 * x)  # more than the net can follow

    def fitted(values: np.ndarray[Any, Any]) -> Tensor:
        parts = torch.from_numpy(values).split([p.numel() for p in model.parameters()])
        named = {
            name: part.view_as(p)
            for (name, p), part in zip(model.named_parameters(), parts, strict=True)
        }
        found: Tensor = torch.func.functional_call(model, named, (x,))
        return found

    reference = least_squares(lambda w: (fitted(w) - y).flatten().numpy(), flat(model).numpy())
    optimizer = GaussNewton(model)
    losses = []
    for _ in range(150):
        if closure:
            losses.append(float(optimizer.step(lambda: evaluate(model, optimizer, x, y)).detach()))
        else:
            losses.append(float(evaluate(model, optimizer, x, y).detach()))
            optimizer.step()
    best = 2 * reference.cost / len(x)
    assert min(losses) <= best * (1 + 1e-6)
    if closure:
        assert losses == sorted(losses, reverse=True)


def test_it_fits_a_neural_ode_in_a_few_steps() -> None:
    torch.manual_seed(0)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    truth, model = (
        ODEBlock(Field(), method="rk4", gradient="direct", options={"steps": 2}).double()
        for _ in range(2)
    )
    x = torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        for p in truth.parameters():
            p.add_(0.3 * torch.randn_like(p))
        y = truth(x, times)
    optimizer = GaussNewton(model)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        outputs = model(x, times)
        loss = functional.mse_loss(outputs, y)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss, batch_dim=1)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 1e-6 * losses[0]


def test_mini_batches_are_judged_by_closures() -> None:
    model, x, y = problem()
    damping = controller()
    optimizer = GaussNewton(model, damping=damping)
    for k in range(40):
        part = slice(k % 2, None, 2)
        optimizer.step(lambda s=part: evaluate(model, optimizer, x[s], y[s]))  # type: ignore[misc]
    assert float(functional.mse_loss(model(x), y).detach()) < 1e-3
    assert damping.value < 0.01


def test_mini_batches_without_closures_leave_the_damping_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, x, y = problem()
    damping = controller()
    optimizer = GaussNewton(model, damping=damping)
    with caplog.at_level(logging.WARNING):
        for k in range(6):
            evaluate(model, optimizer, x[k % 2 :: 2], y[k % 2 :: 2])
            optimizer.step()
    assert damping.value == 0.1
    assert caplog.text.count("step(closure)") == 1
    # The same data again: losses can be compared.
    for _ in range(3):
        evaluate(model, optimizer, x, y)
        optimizer.step()
    assert damping.value != 0.1


def test_every_so_many_steps_it_asks_for_a_loss() -> None:
    model, x, y = problem()
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        return evaluate(model, optimizer, x, y)

    optimizer = GaussNewton(model, damping=controller(every=3))
    for _ in range(6):
        optimizer.step(closure)
    assert len(calls) == 6 + 2


def test_a_loss_that_is_no_number_after_the_step_is_taken_back() -> None:
    model, x, y = problem()
    optimizer = GaussNewton(model, damping=controller())
    before, calls = flat(model), []

    def closure() -> Tensor:
        calls.append(1)
        loss = evaluate(model, optimizer, x, y)
        return loss if len(calls) == 1 else loss * math.nan

    optimizer.step(closure)
    assert torch.equal(flat(model), before)


def test_the_controllers_value_is_saved() -> None:
    model, x, y = problem()
    optimizer = GaussNewton(model)
    for _ in range(4):
        evaluate(model, optimizer, x, y)
        optimizer.step()
    saved = optimizer.state_dict()
    again = GaussNewton(model)
    again.load_state_dict(saved)
    assert again.diagnostics()["damping"] == optimizer.diagnostics()["damping"] != 0.01


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_batches_with_the_same_targets_are_told_apart_by_their_inputs(
    fresh: bool, leaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Residuals at points that are drawn anew for each step, and are to be zero at all."""
    model, x, _ = problem()
    optimizer = GaussNewton(model)
    for step in range(6):
        points = x + 0.5 * step if fresh else x.clone()
        optimizer.zero_grad()
        outputs = model(points.requires_grad_(leaf)) - torch.sin(2 * points)
        loss = outputs.square().mean()
        optimizer.curvature_pass(outputs, "gaussian", targets=torch.zeros_like(x), loss=loss)
        loss.backward()
        optimizer.step()
    adapted = optimizer.diagnostics()["damping"] != 0.01
    assert adapted is not fresh
    assert ("it is another one now" in caplog.text) is fresh


@pytest.mark.parametrize("memory", [2.0**30, 0.0])
@pytest.mark.parametrize("settings", [{}, {"damping": 0.1}, {"damping": 0.1, "momentum": 0.5}])
def test_a_resumed_run_judges_the_last_step(memory: float, settings: dict[str, Any]) -> None:
    ends = []
    for resumed in (False, True):
        model, x, y = problem()
        optimizer = GaussNewton(model, memory=memory, **settings)
        for _ in range(9):
            evaluate(model, optimizer, x, y)
            optimizer.step()
            if resumed:
                stream = io.BytesIO()
                torch.save((model.state_dict(), optimizer.state_dict()), stream)
                stream.seek(0)
                weights, state = torch.load(stream, weights_only=True)
                model, x, y = problem()
                optimizer = GaussNewton(model, memory=memory, **settings)
                optimizer.load_state_dict(state)
                model.load_state_dict(weights)
        found = optimizer.diagnostics()
        ends.append((flat(model), found["damping"], found["steps_rejected"]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def test_a_state_of_one_step_loads_without_a_judgement_but_not_into_another_model() -> None:
    model, x, y = problem()
    optimizer = GaussNewton(model)
    evaluate(model, optimizer, x, y)
    optimizer.step()
    state = optimizer.state_dict()
    gain = state["preconditioner"].pop("gain")
    optimizer.load_state_dict(state)  # earlier versions left the last step unjudged
    gain["before"]["0.weight"] = torch.zeros(3)
    state["preconditioner"]["gain"] = gain
    with pytest.raises(ValueError, match=r"another model: see '0\.weight'"):
        optimizer.load_state_dict(state)
    evaluate(model, optimizer, x, y)
    optimizer.step()


@pytest.mark.parametrize("how", ["load_state_dict", "data"])
@pytest.mark.parametrize(
    "settings",
    [{"rows": "outputs", "damping": "steered"}, {"rows": "outputs"}, {"rows": "samples"}],
)
def test_weights_from_elsewhere_are_not_taken_back(how: str, settings: dict[str, Any]) -> None:
    """Their loss is higher than it was before the last step, and no fault of that step."""
    settings = {"momentum": 0.0, **settings}
    if "damping" in settings:
        settings["damping"] = controller(0.01)
    model, x, y = problem()
    optimizer = SNOpt(model, 0.5, rule="gauss_newton", **settings)
    for _ in range(6):
        evaluate(model, optimizer, x, y)
        optimizer.step()
    old, other = flat(model), problem()[0]
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(4.0)
    if how == "data":
        for p, new in zip(model.parameters(), other.parameters(), strict=True):
            p.data.copy_(new)
    else:
        model.load_state_dict(other.state_dict())
    loaded = flat(model)
    first = evaluate(model, optimizer, x, y)
    optimizer.step()
    assert (flat(model) - loaded).norm() < 0.4 * (flat(model) - old).norm()
    assert evaluate(model, optimizer, x, y) < first
    names = ("steps_halved", "steps_rejected")
    before = [optimizer.diagnostics().get(name) for name in names]
    optimizer.step()
    assert [optimizer.diagnostics().get(name) for name in names] == before


def test_two_optimizers_do_not_share_a_controller() -> None:
    first, second = (GaussNewton(problem()[0]) for _ in range(2))
    assert first.param_groups[0]["damping"] is not second.param_groups[0]["damping"]


def test_the_names_are_those_rules() -> None:
    model, *_ = problem()
    for named in (GaussNewton(model), KFAC(model)):
        assert isinstance(named, SNOpt)
    kfac, twin = KFAC(model, 0.05, damping=0.01), SNOpt(model, 0.05, rule="kfac", damping=0.01)
    assert kfac.rule == twin.rule
    assert kfac.param_groups[0]["lr"] == twin.param_groups[0]["lr"]
    assert GaussNewton(model, rows="samples", damping=0.1).rule.rows == "samples"  # type: ignore[attr-defined]


def test_the_page_for_models_without_an_ode_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "without_an_ode.md").read_text()
    space: dict[str, Any] = {}
    first, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(first, "without_an_ode.md", "exec"), space)
    assert float(space["loss"].detach()) < 1e-6
    for code in others:
        exec(compile(code, "without_an_ode.md", "exec"), space)


def test_the_examples_of_the_names_run() -> None:
    assert doctest.testmod(snopt.optim.named).failed == 0
