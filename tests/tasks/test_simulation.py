"""The Silverbox's free runs: the driven field, its solution, and what is measured of which rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline

from snopt.ode.gradients import GRADIENTS
from tasks import simulation
from tasks.models.families import FAMILIES
from tasks.models.forced import DrivenField, DrivenNet
from tasks.simulation import SilverboxSimulation
from tasks.task import Splits
from tests.support.differences import against_differences

CPU = torch.device("cpu")
NOISE = torch.Generator()
TIGHT = {"rtol": 1e-10, "atol": 1e-10}

pytestmark = pytest.mark.usefixtures("checked_shapes")


def network(family: str = "node", **solver: Any) -> DrivenNet:
    torch.manual_seed(0)
    given = {**TIGHT, "gradient": "direct", **solver}
    return DrivenNet(4, hidden=5, layers=1, family={"name": family}, solver=given).double()


def spline(samples: np.ndarray) -> CubicHermiteSpline:
    """Through samples at 0, 1, ..., with the slopes of central differences."""
    padded = np.concatenate([samples[:1], samples, samples[-1:]])
    return CubicHermiteSpline(np.arange(len(samples)), samples, (padded[2:] - padded[:-2]) / 2)


def test_the_input_is_a_cubic_between_its_samples() -> None:
    field = DrivenField(torch.nn.Identity())
    field.samples = torch.randn(3, 6, dtype=torch.float64)
    for number, samples in enumerate(field.samples.numpy()):
        expected = spline(samples)
        for t in (0.0, 0.3, 1.0, 2.5, 3.999, 4.7, 5.0):
            assert field.input_at(t)[number].item() == pytest.approx(expected(t), abs=1e-12)


def test_an_input_is_needed() -> None:
    with pytest.raises(RuntimeError, match="set samples before"):
        DrivenField(torch.nn.Identity())(torch.tensor(0.0), torch.zeros(1, 2))


def test_every_window_is_solved_with_its_own_input() -> None:
    model = network()
    past, forcing = torch.randn(2, 4).double(), torch.randn(2, 5).double()
    found = model(past, forcing).detach()
    assert found.shape == (2, 4, 1)
    first, last = (layer for layer in model.field.net if isinstance(layer, torch.nn.Linear))
    weights = [tensor.detach().numpy() for tensor in (*first.parameters(), *last.parameters())]
    for start, samples, ours in zip(model.told(past).detach(), forcing.numpy(), found, strict=True):
        u = spline(samples)

        def slope(t: float, z: np.ndarray, u: CubicHermiteSpline = u) -> np.ndarray:
            hidden = np.tanh(weights[0] @ np.append(z, u(t)) + weights[1])
            return np.asarray(weights[2] @ hidden + weights[3])

        expected = solve_ivp(slope, (0, 4), start.numpy(), "DOP853", range(5), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours[:, 0], expected.y[0, 1:], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_those_of_differences(gradient: str) -> None:
    task, model = SilverboxSimulation(lags=2), network(gradient=gradient)
    batch = tuple(torch.randn(3, *shape).double() for shape in ((4,), (4,), (3, 1)))
    against_differences(model, lambda: task.loss(task.forward(model, batch, NOISE), batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_it(family: str) -> None:
    model = network(family, method="rk4", options={"steps": 1})
    outputs = model(torch.randn(3, 4).double(), torch.randn(3, 6).double())
    assert outputs.shape == (3, 5, 1)
    outputs.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.fixture
def volts(monkeypatch) -> np.ndarray:
    values = np.random.default_rng(0).normal([0.3, 0.1], [0.02, 0.05], (131072, 2))
    monkeypatch.setattr(simulation, "read_silverbox", lambda root: values)
    return values


def loaded(task: SilverboxSimulation) -> Splits:
    return task.load(Path(), 0, CPU, torch.float64)


def test_the_parts_are_the_benchmarks(volts: np.ndarray) -> None:
    task = SilverboxSimulation(window=20, stride=16, lags=3)
    splits = loaded(task)
    known = volts[40650:95712]
    scaled = (volts - known.mean(axis=0)) / known.std(axis=0)
    for part, start, length in (
        (splits.train, 40650 + 2 + 16, 20),
        (splits.valid, 95712 + 2 + 1000, 997),
        (splits.test, 149, 40425),
    ):
        past, forcing, targets = (tensor[min(1, len(tensor) - 1)].numpy() for tensor in part)
        np.testing.assert_allclose(past.reshape(3, 2), scaled[start - 2 : start + 1])
        np.testing.assert_allclose(forcing, scaled[start : start + length + 1, 0])
        np.testing.assert_allclose(targets[:, 0], scaled[start + 1 : start + length + 1, 1])
    assert [len(part[0]) for part in (splits.train, splits.valid, splits.test)] == [3440, 10, 1]
    for part, end in ((splits.train, 95712), (splits.valid, 105712), (splits.test, 40575)):
        assert part[2][-1, -1].item() in scaled[end - 16 : end, 1]  # the last rows are used


def test_errors_are_in_millivolts(volts: np.ndarray) -> None:
    task = SilverboxSimulation()
    test = loaded(task).test
    found = task.measure(torch.zeros_like(test[2]), test)
    centred = volts[:, 1] - volts[40650:95712, 1].mean()
    for name, rows in (("rmse", slice(150, 40575)), ("rmse_no_extrapolation", slice(150, 32100))):
        assert found[name].item() == pytest.approx(1000 * np.sqrt(np.mean(centred[rows] ** 2)))
    short = tuple(tensor[:, :20] for tensor in test)
    assert set(task.measure(short[2], short)) == {"loss", "rmse"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lags": 51}, "lags=51: must be at most 50"),
        ({"window": 0}, "window=0: must be an integer, at least 1"),
        ({"stride": 0}, "stride=0: must be"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SilverboxSimulation(**changes)
