"""Fields fitted to trajectories: what the model solves, what the loss counts, what is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor, nn

from snopt import SNOpt
from snopt.ode.gradients import GRADIENTS
from tasks.data.systems import SYSTEMS, solve
from tasks.forecasts import forecast_figure, forecast_of
from tasks.models.families import FAMILIES
from tasks.models.trajectory_net import TrajectoryNet
from tasks.task import Batch, Splits, Task, Trained
from tasks.trajectories import Forecasting
from tests.support.differences import against_differences
from tests.support.task_cases import make

CPU = torch.device("cpu")
NOISE = torch.Generator()
TIGHT = {"rtol": 1e-10, "atol": 1e-10, "gradient": "direct"}
RK4 = {"method": "rk4", "options": {"steps": 2}, "gradient": "direct"}
SMALL: dict[str, Any] = {"hidden": 6, "batch_size": 8}
ALL = ["spiral", "lotka_volterra", "pendulum", "van_der_pol", "hare_lynx"]

pytestmark = pytest.mark.usefixtures("checked_shapes")


def small(name: str, **changes: Any) -> Forecasting:
    if name in SYSTEMS:
        changes = {"points": 12, "segment": 5, "trajectories": 2, "unseen": 3, **changes}
    task = make(name, **{**SMALL, **changes})
    assert isinstance(task, Forecasting)
    return task


def loaded(task: Task, seed: int = 0) -> Splits:
    return task.load(Path(), seed, CPU, torch.float64)


def network(family: str = "node", solver: dict[str, Any] = TIGHT) -> TrajectoryNet:
    torch.manual_seed(0)
    return TrajectoryNet(2, hidden=6, layers=2, family={"name": family}, solver=solver).double()


class Flow(nn.Module):
    """The true flow, in a task's normalised units."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.system = SYSTEMS[name]

    def forward(self, start: Tensor, times: Tensor) -> Tensor:
        units = self.system.units
        centre, scale = np.array(units.centre), np.array(units.scale)
        states = []
        for x, t in zip(start.numpy(), times.numpy(), strict=True):
            grid = np.concatenate([[0.0], t * units.unit])
            states.append(solve(self.system, (x * scale + centre)[None], grid)[0, 1:])
        return torch.tensor((np.stack(states) - centre) / scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_is_solved_at_its_own_times(family: str) -> None:
    model, start = network(family), torch.randn(3, 2, dtype=torch.float64)
    times = torch.tensor([[0.5, 1.0], [0.1, 1.0], [0.3, 2.5]], dtype=torch.float64)
    found = model(start, times)
    assert found.shape == (3, 2, 2)
    for number in range(3):
        x = model.initial(start[number : number + 1])
        alone = model.first(model.block(x, [0.0, *times[number].tolist()]))
        torch.testing.assert_close(found[number], alone[1:, 0, :2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_those_of_differences(gradient: str) -> None:
    task = small("lotka_volterra", missing=0.3)
    batch = tuple(tensor[:4] for tensor in loaded(task).train)
    model = network(solver={**TIGHT, "gradient": gradient})
    against_differences(model, lambda: task.loss(task.forward(model, batch, NOISE), batch))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_true_flow_has_no_error(name: str) -> None:
    changes = {"points": 101, "segment": 7, "interval": 1.0, "noise": 0.0}
    splits = loaded(task := small(name, **changes))
    # The pendulum starts with a velocity that is estimated, to second order in 0.01 s.
    near = 1e-7 if name != "pendulum" else 0.02
    for split in (splits.train, splits.valid, splits.test):
        measured = task.measure(task.forward(Flow(name), split, NOISE), split)
        assert float(measured["loss"].max()) < near**2
        assert float(measured["rmse"].max()) < near


@pytest.mark.parametrize("name", ALL)
def test_only_the_test_goes_beyond(name: str) -> None:
    splits = loaded(task := small(name))
    zero = [
        task.measure(0 * split[2], split) for split in (splits.train, splits.valid, splits.test)
    ]
    beyond = name != "hare_lynx"
    assert ["rmse_beyond" in values for values in zero] == [False, False, beyond]
    # Of a forecast of zeros, in physical units.
    _, times, targets, _ = splits.test
    scale = torch.tensor(task.units.scale, dtype=torch.float64)
    physical = (targets * scale)[..., : task.units.measured]
    expected = physical.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(zero[2]["rmse"], expected)
    if beyond:
        late = times[0] * task.units.unit > task.interval + 1e-9
        assert 0 < late.sum() < len(late)
        expected = physical[:, late].square().flatten(1).mean(1).sqrt()
        torch.testing.assert_close(zero[2]["rmse_beyond"], expected)


@pytest.mark.parametrize("name", ["lotka_volterra", "pendulum"])
def test_what_nothing_was_measured_of_is_not_validated(name: str) -> None:
    changes = {"points": 40, "segment": 2, "missing": 0.5, "unseen": 8}
    splits = loaded(task := small(name, **changes))
    *_, targets, weights = splits.valid
    errors = task.measure(torch.zeros_like(targets), splits.valid)["rmse"]
    squares = (targets * targets.new_tensor(task.units.scale)).square() * (weights > 0)
    alone = [float((s.sum() / (w > 0).sum()).sqrt()) for s, w in zip(squares, weights, strict=True)]
    assert not any(math.isnan(one) for one in alone)
    assert float(errors.mean()) == pytest.approx(sum(alone) / len(alone))


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_the_mean_over_what_was_measured(name: str) -> None:
    splits = loaded(task := small(name, **({} if name == "hare_lynx" else {"missing": 0.4})))
    for batch in (splits.train, splits.valid, splits.test):
        targets, weights = batch[2:]
        assert float(weights.mean()) == pytest.approx(1.0)
        assert len(weights.unique()) <= 2
        counted = targets[weights > 0]
        loss = task.loss(torch.zeros_like(targets), batch)
        assert float(loss) == pytest.approx(float(counted.square().mean()))
        moved = torch.where(weights > 0, targets, 1e6)
        assert float(task.loss(moved, batch)) == 0.0


def test_splits_are_drawn_from_the_seed() -> None:
    task = small("van_der_pol", missing=0.2, times="irregular")
    one, again, other = (loaded(task, seed) for seed in (0, 0, 1))
    for a, b in zip(one.train + one.test, again.train + again.test, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.train[0], other.train[0])
    assert not torch.equal(one.train[0][:3], one.valid[0][:3])
    clean = loaded(small("van_der_pol", noise=0.0))
    assert torch.equal(one.test[2], clean.test[2])  # neither noise nor gaps
    assert (one.test[3] == 1).all()


def test_gauss_newton_takes_gaps_and_noise() -> None:
    """Its check of the loss against the gradient at the outputs passes, and it descends."""
    task = small("van_der_pol", missing=0.3, times="irregular")
    batch: Batch = loaded(task).train
    model = network(solver=RK4)
    optimizer = SNOpt(model, lr=0.5, rule="gauss_newton", trust=None)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        outputs = task.forward(model, batch, NOISE)
        loss = task.loss(outputs, batch)
        optimizer.curvature_pass(outputs, "gaussian", loss=loss)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("spiral", {"dataset": "spirals"}, r"dataset=spirals: .* Did you mean spiral\?"),
        ("spiral", {"times": "random"}, "times=random: no such choice"),
        ("spiral", {"points": 3}, "points=3: must be more than 3"),
        ("spiral", {"segment": 1}, "segment=1: must be from 2, a start and a target, to 10"),
        ("spiral", {"segment": 11}, "segment=11: must be from 2"),
        ("spiral", {"noise": -0.1}, r"noise=-0\.1: must be at least 0"),
        ("spiral", {"missing": 1.0}, r"missing=1\.0: must be at least 0 and below 1"),
        ("spiral", {"interval": 0.0}, r"interval=0\.0: must be above 0"),
        ("spiral", {"forecast": float("inf")}, "forecast=inf: must be above 0"),
        ("spiral", {"trajectories": 0}, "trajectories=0: must be an integer, at least 1"),
        ("spiral", {"layers": 0}, "layers=0: must be an integer, at least 1"),
        ("hare_lynx", {"segment": 14}, "segment=14: must be from 2 to 13, or null for 13"),
    ],
)
def test_what_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InstantiationException, match=message):
        small(name, **changes)


def test_a_forecast_by_the_true_flow_is_drawn_on_the_truth() -> None:
    task = small("van_der_pol")
    splits = loaded(task)
    one = Trained("truth", "#009E73", 0, Flow("van_der_pol"), splits)
    found = forecast_of(one, task.units)
    assert found is not None
    assert found.states == pytest.approx(found.truth, abs=1e-7)
    assert found.errors.shape == splits.test[1][0].shape
    assert found.errors.max() < 1e-7
    assert found.times[[0, -1]] == pytest.approx([0.0, 2.0 * task.interval])


@pytest.mark.parametrize("name", ALL)
def test_a_picture_has_a_panel_for_each_model_and_one_for_the_errors(name: str) -> None:
    task = small(name)
    splits = loaded(task)
    trained = [Trained(label, "#009E73", 0, network(), splits, 0.25) for label in "abcd"]
    figure = task.picture("title", trained)
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 5
    (errors,) = (axes for axes in panels if axes.get_yscale() == "log")
    drawn = [line for line in errors.lines if len(line.get_xdata()) > 2]
    assert [line.get_label() for line in drawn] == list("abcd")
    assert len({line.get_linestyle() for line in drawn}) == 4  # as all have one colour
    found = forecast_of(trained[0], task.units)
    assert found is not None
    assert np.asarray(drawn[0].get_ydata()) == pytest.approx(found.errors)
    assert panels[0].get_title() == "a, seed 0\ntest rmse 0.25"


def test_a_model_whose_solve_fails_is_not_drawn() -> None:
    task = small("spiral")
    model = network(solver={"options": {"max_steps": 1}, "rtol": 1e-12, "atol": 1e-12})
    trained = [Trained("a", "#009E73", 0, model, loaded(task))]
    assert forecast_figure("title", trained, task.units, task.interval) is None
