"""Integration time: Q_T against finite differences, updates against closed forms, optima."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from snopt import Horizon, ODEBlock, SNOpt, advise, gradient_error
from snopt.dynamics import GHBNODE, FirstPart, InitialState
from tests.support.problems import GRADIENTS


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))) + torch.sin(2 * t) * x


def model_and_batch(t_span, dtype=torch.float64, pair=False, tolerance=1e-10):
    torch.manual_seed(0)
    system = GHBNODE(Field(), xi=0.5) if pair else Field()
    block = ODEBlock(system, t_span, rtol=tolerance, atol=tolerance)
    stem = InitialState(nn.Linear(2, 2)) if pair else nn.Identity()
    model = nn.Sequential(stem, block, FirstPart(), nn.Linear(2, 1)).to(dtype)
    return model, block, torch.randn(5, 2, dtype=dtype), torch.randn(5, 1, dtype=dtype)


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (0.3, 1.5), (1.0, -0.5)])
@pytest.mark.parametrize("pair", [False, True])
def test_q_t_is_the_derivative_in_the_horizon(t_span, pair: bool) -> None:
    model, block, x, y = model_and_batch(t_span, pair=pair)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    horizon = Horizon(block, optimizer, "fixed", penalty=0.3, every=1)

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    loss().backward()
    optimizer.step()
    duration, step, values = horizon.T, 1e-2, []
    for shift in (-2, -1, 1, 2):
        horizon.T = duration + shift * step
        values.append(loss().item() + horizon.cost())
    slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    entry = horizon.trace[0]
    assert entry.q_t == pytest.approx(slope, rel=1e-6)
    assert entry.q_tt == pytest.approx((slope - 0.3 * duration) ** 2 + 0.3, rel=1e-5)


class Linear1d(nn.Module):
    """x' = a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.a * x


@pytest.mark.parametrize("rule", ["feedback", "first_order", "fixed"])
def test_update_is_the_closed_form_on_a_linear_quadratic_problem(rule: str) -> None:
    x0, target, T, c, lr, theta_lr = 0.7, 2.0, 1.3, 0.05, 0.2, 0.3
    block = ODEBlock(Linear1d(), (0.0, T), rtol=1e-10, atol=1e-10)
    optimizer = torch.optim.SGD(block.parameters(), theta_lr)
    horizon = Horizon(block, optimizer, rule, lr=lr, penalty=c, every=1)
    xt = block(torch.full((1, 1), x0, dtype=torch.float64))
    (0.5 * (xt - target).square()).sum().backward()
    optimizer.step()

    a = 0.4
    x1 = x0 * math.exp(a * T)
    slope = (x1 - target) * a * x1
    q_theta = (x1 - target) * T * x1
    q_t, q_tt = slope + c * T, slope**2 + c
    q_t_theta = slope * q_theta
    change = {
        "feedback": -lr / q_tt * (q_t + q_t_theta * (-theta_lr * q_theta)),
        "first_order": -lr * q_t,
        "fixed": 0.0,
    }[rule]
    entry = horizon.trace[0]
    assert (entry.q_t, entry.q_tt) == (pytest.approx(q_t, rel=1e-7), pytest.approx(q_tt, rel=1e-7))
    assert entry.open + entry.feedback == pytest.approx(change, rel=1e-6)
    assert pytest.approx(T + change, rel=1e-7) == horizon.T
    assert block.t_span == (0.0, horizon.T)


class Drift(nn.Module):
    """x' = b."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.b.expand_as(x)


def drive(horizon: Horizon, block: ODEBlock, optimizer, target: float, steps: int) -> None:
    x0 = torch.zeros(1, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (block(x0) - target).square()).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("start", [0.3, 3.0])
@pytest.mark.parametrize("rule", ["feedback", "first_order"])
def test_the_horizon_moves_to_the_analytic_optimum(rule: str, start: float) -> None:
    b, target, c = 0.8, 1.5, 0.2
    block = ODEBlock(Drift(b), (0.0, start), method="rk4", options={"steps": 1})
    optimizer = torch.optim.SGD(block.parameters(), 0.0)
    horizon = Horizon(block, optimizer, rule, lr=0.1, penalty=c, every=2, average=0.5)
    drive(horizon, block, optimizer, target, 240)
    # d/dT [(b T - y)² / 2 + c T² / 2] = 0
    assert pytest.approx(b * target / (b**2 + c), abs=1e-3) == horizon.T


@pytest.mark.parametrize("rule", ["feedback", "first_order"])
def test_the_horizon_stays_above_its_floor(rule: str) -> None:
    block = ODEBlock(Drift(1.0), (0.5, 1.0), method="rk4", options={"steps": 1})
    optimizer = torch.optim.SGD(block.parameters(), 0.0)
    horizon = Horizon(block, optimizer, rule, lr=0.5, every=1, floor=0.05)
    drive(horizon, block, optimizer, -5.0, 40)  # a target that only a negative time would reach
    assert pytest.approx(0.05) == horizon.T
    assert all(entry.T >= 0.05 - 1e-12 for entry in horizon.trace)
    assert block.t_span[0] == 0.5


def test_backwards_blocks_keep_their_direction_and_changes_can_be_limited() -> None:
    block = ODEBlock(Drift(1.0), (1.0, 0.5), method="rk4", options={"steps": 1})
    optimizer = torch.optim.SGD(block.parameters(), 0.0)
    horizon = Horizon(block, optimizer, "first_order", lr=10.0, every=1, max_change=0.25)
    drive(horizon, block, optimizer, -5.0, 1)  # x(t1) = -T here, so T wants to grow
    assert pytest.approx(0.75) == horizon.T
    assert block.t_span == (1.0, pytest.approx(0.25))
    assert horizon.trace[0].open > 0.25


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_follow_the_model(dtype: torch.dtype, device: str) -> None:
    model, block, x, y = model_and_batch((0.0, 1.0), dtype)
    model, x, y = model.to(device), x.to(device), y.to(device)
    block.solver = ODEBlock(block.field, rtol=1e-5, atol=1e-5).solver
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    horizon = Horizon(block, optimizer, every=1)
    (model(x) - y).square().mean().backward()
    optimizer.step()
    means = horizon.state_dict()["means"]
    assert means.dtype == dtype
    assert means.device == x.device
    assert horizon.trace[0].feedback != 0.0


def test_feedback_is_the_change_of_q_t_that_the_step_causes() -> None:
    """Q_Tθ δθ, an outer-product curvature, has the sign of the true change where it dominates."""
    block = ODEBlock(Linear1d(), (0.0, 1.0), rtol=1e-10, atol=1e-10)
    optimizer = torch.optim.SGD(block.parameters(), 1e-3)
    horizon = Horizon(block, optimizer, every=1, penalty=1e-3)
    x0 = torch.full((1, 1), 2.0, dtype=torch.float64)
    slopes = []
    for _ in range(2):
        optimizer.zero_grad()
        block.t_span = (0.0, 1.0)
        (0.5 * (block(x0) + 1.0).square()).sum().backward()
        optimizer.step()
        slopes.append(horizon.trace[-1])
    assert slopes[1].q_t < slopes[0].q_t  # the step lowers dL/dT
    assert slopes[0].feedback > 0.0 > slopes[0].open  # so T is shortened by less


def test_accumulated_and_scaled_gradients() -> None:
    results = []
    for chunks, scale in ((1, 1.0), (5, 1.0), (1, 128.0)):
        model, block, x, y = model_and_batch((0.0, 1.0))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        horizon = Horizon(block, optimizer, every=1, grad_scale=lambda scale=scale: scale)
        for xs, ys in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
            (scale * (model(xs) - ys).square().sum() / len(x)).backward()
        for p in model.parameters():  # what GradScaler does before the step
            p.grad /= scale
        optimizer.step()
        results.append(horizon.trace[0])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-6)


def test_closures_and_non_finite_gradients() -> None:
    model, block, x, y = model_and_batch((0.0, 1.0))
    plain = copy.deepcopy(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=3)
    horizon = Horizon(block, optimizer, "fixed", every=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    single = torch.optim.SGD(plain.parameters(), 0.0)
    once = Horizon(plain[1], single, "fixed", every=1)
    (plain(x) - y).square().mean().backward()
    single.step()
    # The last of several evaluations counts, not their sum.
    assert horizon.trace[0].q_t == pytest.approx(once.trace[0].q_t, rel=0.1)

    before = once.trace[0].q_t
    plain[1].gradient = "direct"  # the adjoint solver refuses such a gradient itself
    (plain(x) * float("inf")).sum().backward()
    single.step()
    assert once.trace[1].q_t == before


def test_the_gradient_is_untouched_and_listening_can_end() -> None:
    gradients = []
    for listen in (False, True):
        model, block, x, y = model_and_batch((0.0, 1.0))
        model.insert(2, nn.ReLU(inplace=listen))  # in place, right behind the block
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        horizon = Horizon(block, optimizer, every=1) if listen else None
        nfe = block.nfe_forward
        (model(x) - y).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        gradients.append([torch.tensor(block.nfe_forward - nfe), torch.tensor(block.nfe_backward)])
    assert all(map(torch.equal, gradients[0] + gradients[1], gradients[2] + gradients[3]))
    horizon.remove()
    optimizer.step()
    assert horizon.trace == []


def first_q_t(model, optimizer, horizon: Horizon, x: Tensor, y: Tensor, **backward) -> float:
    (model(x) - y).square().mean().backward(**backward)
    optimizer.step()
    return horizon.trace[0].q_t


@pytest.mark.filterwarnings("ignore:Using backward")  # once a process, so it may not come
def test_only_the_loss_is_heard() -> None:
    model, block, x, y = model_and_batch((0.0, 1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    alone = first_q_t(model, optimizer, Horizon(block, optimizer, every=1), x, y)

    # Curvature's backward passes have other cotangents.
    model, block, x, y = model_and_batch((0.0, 1.0))
    fisher = SNOpt(model, lr=1e-3, rule="paper", basis="curvature", curvature="fisher")
    horizon = Horizon(block, fisher, every=1)
    outputs = model(x)
    fisher.curvature_pass(outputs, likelihood="gaussian")
    (outputs - y).square().mean().backward()
    fisher.step()
    assert horizon.trace[0].q_t == pytest.approx(alone, rel=1e-12)

    # So have those by which an optimizer differentiates the gradient again in its step.
    class Twice(torch.optim.Optimizer):
        def step(self, closure=None):
            parameters = self.param_groups[0]["params"]
            gradients = [p.grad for p in parameters]
            directions = [torch.ones_like(g) for g in gradients]
            torch.autograd.grad(gradients, parameters, directions)

    model, block, x, y = model_and_batch((0.0, 1.0))
    block.gradient = "direct"
    twice = Twice(model.parameters(), {})
    horizon = Horizon(block, twice, every=1)
    found = first_q_t(model, twice, horizon, x, y, create_graph=True)
    assert found == pytest.approx(alone, rel=1e-8)
    twice.zero_grad()

    # Nor does it hear copies of the model, or a batch that was left out.
    model, block, x, y = model_and_batch((0.0, 1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    horizon = Horizon(block, optimizer, every=1)
    (copy.deepcopy(model)(x) - 3 * y).square().mean().backward()
    (model(x) - 3 * y).square().mean().backward()
    horizon.discard()
    assert first_q_t(model, optimizer, horizon, x, y) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_gradient_that_was_thrown_away_is_not_heard(kind: str, set_to_none: bool) -> None:
    """Layers behind the block have a gradient again before the pass comes to it."""

    def run(bad: bool) -> float:
        model, block, x, y = model_and_batch((0.0, 1.0), tolerance=1e-4)
        block.gradient = kind
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        horizon = Horizon(block, optimizer, every=1)
        if bad:
            (model(x[:2]) - 5 * y[:2]).square().mean().backward()
            optimizer.zero_grad(set_to_none)
        for half in (slice(0, 3), slice(3, None)):  # micro-batches still add up
            ((model(x[half]) - y[half]).square().mean() / 2).backward()
        optimizer.step()
        return horizon.trace[0].q_t

    assert run(bad=True) == pytest.approx(run(bad=False), rel=1e-12)


def test_resuming_continues_bit_for_bit() -> None:
    def steps(model, optimizer, x, y, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

    def fresh():
        model, block, x, y = model_and_batch((0.0, 1.0), tolerance=1e-4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optimizer, Horizon(block, optimizer, every=3, lr=0.5), x, y

    model, optimizer, horizon, x, y = fresh()
    steps(model, optimizer, x, y, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), horizon.state_dict()))
    steps(model, optimizer, x, y, 5)
    again, optimizer2, horizon2, *_ = fresh()
    again.load_state_dict(saved[0])
    optimizer2.load_state_dict(saved[1])
    horizon2.load_state_dict(saved[2])
    steps(again, optimizer2, x, y, 5)
    assert horizon2.trace == horizon.trace
    assert len(horizon.trace) == 3
    assert again[1].t_span == model[1].t_span != (0.0, 1.0)
    assert all(map(torch.equal, again.parameters(), model.parameters()))


def test_mistakes_are_explained() -> None:
    block = ODEBlock(Drift(1.0), (0.0, 1.0))
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    for changes, message in (
        ({"rule": "second"}, "feedback, first_order, fixed"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"every": 0}, "every=0"),
        ({"average": 1.0}, "average=1.0"),
        ({"floor": 2.0}, "above the block's horizon"),
        ({"max_change": 0.0}, "max_change=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Horizon(block, optimizer, **changes)
    Horizon(block, optimizer, every=1)
    block(torch.zeros(1, 1), torch.tensor([0.0, 0.5, 1.0])).sum().backward()
    with pytest.raises(RuntimeError, match="without times"):
        optimizer.step()


def test_a_batch_without_a_finite_gradient_leaves_the_horizon_finite() -> None:
    """Gauss-Newton takes no step then, and others may be made not to."""
    model, block, x, y = model_and_batch((0.0, 1.0), tolerance=1e-4)
    optimizer = SNOpt(model, rule="gauss_newton", rows="outputs")
    horizon = Horizon(block, optimizer, every=2, floor=0.5)
    for scale in (1.0, math.nan, 1.0, 1.0):
        optimizer.zero_grad()
        outputs = model(x)
        loss = nn.functional.mse_loss(outputs, y) * scale
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        loss.backward()
        optimizer.step()
    first, second = horizon.trace
    assert first.feedback == 0.0 != second.feedback
    assert math.isfinite(horizon.T)


def test_a_model_in_place_of_its_block_is_told() -> None:
    model, x = nn.Sequential(ODEBlock(nn.Tanh())), torch.zeros(2, 3)
    for call in (
        lambda: gradient_error(model, x),  # type: ignore[arg-type]
        lambda: advise(model, x),  # type: ignore[arg-type]
        lambda: Horizon(model, SNOpt(nn.Linear(2, 2))),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="expected an ODEBlock, got Sequential"):
            call()
