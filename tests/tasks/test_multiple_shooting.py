"""Multiple shooting: segments that join, their learned starts, and the gaps between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor

from snopt import GaussNewton, SNOpt
from snopt.ode.gradients import GRADIENTS
from tasks.data.systems import SYSTEMS
from tasks.data.trajectories import chained
from tasks.engine.config.identity import config_hash
from tasks.models.trajectory_net import ShootingNet, TrajectoryNet
from tasks.trajectories import Forecasting
from tests.support import fake
from tests.support.differences import against_differences
from tests.tasks.test_trajectory_tasks import ALL, NOISE, RK4, TIGHT, Flow, loaded, small

pytestmark = pytest.mark.usefixtures("checked_shapes")


def shooting(name: str, **changes: Any) -> Forecasting:
    return small(name, **{"shooting": 4.0, "segment": 5, **changes})


def network(task: Forecasting, solver: dict[str, Any] = TIGHT) -> ShootingNet:
    torch.manual_seed(0)
    model = task.build_model({"name": "node"}, solver).double()
    assert isinstance(model, ShootingNet)
    return model


def test_segments_join_through_all_rows() -> None:
    times = np.array([0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0])
    states = np.stack([times**2, -times], axis=1)
    states[3, 0] = np.nan  # where a segment starts
    found = chained(times, states, 4)
    assert found.times == pytest.approx(np.array([[0.0, 1.0, 3.0, 4.0], [0.0, 2.0, 3.0, 5.0]]))
    assert found.start == pytest.approx(np.array([[0.0, 0.0], [18.0, -4.0]]))  # a third, 9 to 36
    np.testing.assert_equal(found.targets, states[[[0, 1, 2, 3], [3, 4, 5, 6]]])
    assert found.linked is not None
    assert found.linked.tolist() == [True, False]


def test_the_last_segment_is_filled_up_with_what_was_not_measured() -> None:
    times = np.arange(6.0)
    found = chained(times, times[:, None], 4)
    assert found.times.tolist() == [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 2.0]]
    np.testing.assert_equal(found.targets[1, :, 0], [3.0, 4.0, 5.0, np.nan])


@pytest.mark.parametrize("name", ALL)
def test_a_row_is_the_gap_to_the_next_start(name: str) -> None:
    task = shooting(name)
    _, times, targets, weights, index = loaded(task).train
    model = network(task)
    with torch.no_grad():
        model.corrections.normal_(std=0.1)
    outputs = task.forward(model, loaded(task).train, NOISE)
    assert outputs.shape == targets.shape == weights.shape
    assert (weights[-1, -1] == 0).all()  # the last segment joins nothing
    starts = model.measured + model.corrections
    for k in index.tolist()[:-1]:
        alone = TrajectoryNet.forward(model, starts[k : k + 1], times[k : k + 1, 1:])[0]
        expected = torch.cat([starts[k : k + 1], alone, 2.0 * (alone[-1:] - starts[k + 1])])
        torch.testing.assert_close(outputs[k], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_true_flow_from_true_starts_leaves_no_gaps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = shooting(name, points=101, segment=3, interval=1.0, noise=0.0, missing=0.1)
    whole = shooting(name, points=101, segment=3, interval=1.0, noise=0.0)
    flow = Flow(name)
    monkeypatch.setattr(TrajectoryNet, "forward", lambda _, x, t: flow(x, t))
    starts = loaded(whole).train[0]
    splits = loaded(task)
    model = network(task)
    with torch.no_grad():  # interpolated ones are a little wrong
        model.corrections.copy_(starts - model.measured)
        measured = task.measure(task.forward(model, splits.train, NOISE), splits.train)
    near = 1e-7 if name != "pendulum" else 0.02  # whose velocity is estimated
    assert float(measured["rmse"].max()) < near
    assert float(measured["loss"].max()) < (5 * near) ** 2
    with torch.no_grad():
        model.corrections[2, 0] += 0.1
        moved = task.measure(task.forward(model, splits.train, NOISE), splits.train)["loss"]
    assert moved[1] > 1e-3  # the gap of the segment before
    assert moved[2] > 1e-3


def test_a_gap_counts_by_its_weight() -> None:
    batch = loaded(shooting("lotka_volterra")).train
    losses = []
    for weight in (1.0, 4.0):
        task = shooting("lotka_volterra", shooting=weight)
        loaded(task)
        model = network(task)
        losses.append(task.measure(task.forward(model, batch, NOISE), batch)["loss"])
        outputs = task.forward(model, batch, NOISE)
    gap = (batch[3][:, -1] * outputs[:, -1].square()).sum(1) / batch[2][0].numel()
    torch.testing.assert_close(losses[1] - losses[0], 0.75 * gap)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_those_of_differences(gradient: str) -> None:
    task = shooting("van_der_pol", missing=0.3)
    batch = tuple(tensor[1:4] for tensor in loaded(task).train)
    model = network(task, {**TIGHT, "gradient": gradient})
    assert "corrections" in dict(model.named_parameters())
    against_differences(model, lambda: task.loss(task.forward(model, batch, NOISE), batch))


def test_evaluations_start_from_what_was_measured() -> None:
    task = shooting("van_der_pol")
    splits = loaded(task)
    ordinary = loaded(small("van_der_pol"))
    model = network(task)
    for split, as_before in ((splits.valid, ordinary.valid), (splits.test, ordinary.test)):
        for one, other in zip(split, as_before, strict=True):
            assert torch.equal(one, other)
        before = task.forward(model, split, NOISE)
        with torch.no_grad():
            model.corrections += 1.0
        assert torch.equal(task.forward(model, split, NOISE), before)


def _descend(model: ShootingNet, task: Forecasting, optimizer: Any) -> list[float]:
    batch = loaded(task).train
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs = task.forward(model, batch, NOISE)
        loss = task.loss(outputs, batch)
        if hasattr(optimizer, "curvature_pass"):
            optimizer.curvature_pass(outputs, "gaussian", loss=loss)
        loss.backward()
        return loss

    for _ in range(8):
        losses.append(float(optimizer.step(closure).detach()))
    return losses


@pytest.mark.parametrize("rule", ["adam", "paper", "gauss_newton", "outputs"])
def test_every_rule_descends_and_learns_starts(rule: str) -> None:
    task = shooting("van_der_pol", missing=0.2, noise=0.2)
    loaded(task)
    model = network(task, RK4)
    if rule == "outputs":
        losses = _descend(model, task, GaussNewton(model))
    else:
        losses = _descend(model, task, SNOpt(model, lr=0.03, rule=rule))
    assert losses[-1] < losses[0]
    assert float(model.corrections.detach().abs().min()) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shooting": 0.0}, r"shooting=0\.0: must be above 0, or null to go without"),
        ({"shooting": float("inf")}, "shooting=inf: must be above 0"),
        ({"segment": None}, r"segment=null makes none; set task\.segment"),
        ({"initial_horizon": 0.5}, "does not reach the next; set one of them alone"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InstantiationException, match=message):
        shooting("van_der_pol", **changes)


def test_runs_from_before_are_found(tmp_path: Path) -> None:
    before = fake.config(tmp_path)
    assert config_hash(fake.config(tmp_path, task={"shooting": None})) == config_hash(before)
    assert config_hash(fake.config(tmp_path, task={"shooting": 1.0})) != config_hash(before)
