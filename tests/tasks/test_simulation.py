"""Free runs of driven systems: the field, its solution, and what is measured of which rows."""

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
from tasks.data import measurements
from tasks.models.families import FAMILIES
from tasks.models.forced import DrivenField, DrivenNet
from tasks.simulation import F16Simulation, SilverboxSimulation
from tasks.task import Splits, Trained
from tests.support.differences import against_differences

CPU = torch.device("cpu")
NOISE = torch.Generator()
TIGHT = {"rtol": 1e-10, "atol": 1e-10}

pytestmark = pytest.mark.usefixtures("checked_shapes")


def network(family: str = "node", outputs: int | None = None, **solver: Any) -> DrivenNet:
    torch.manual_seed(0)
    given = {**TIGHT, "gradient": "direct", **solver}
    return DrivenNet(
        4, hidden=5, layers=1, family={"name": family}, solver=given, outputs=outputs
    ).double()


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


def test_outputs_are_read_of_state_and_input() -> None:
    """From a field that is zero at first, so that the state stays where it is told to begin."""
    model = network(outputs=3)
    past, forcing = torch.randn(2, 4).double(), torch.randn(2, 5).double()
    state = model.told(past).unsqueeze(1).expand(2, 4, 2)
    weight, bias = model.read.parameters()
    expected = torch.einsum("kc,nsc->nsk", weight[:, :2], state) + bias
    expected = expected + forcing[:, 1:, None] * weight[:, 2]
    torch.testing.assert_close(model(past, forcing), expected)


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_it(family: str, outputs: int | None) -> None:
    model = network(family, outputs, method="rk4", options={"steps": 1})
    found = model(torch.randn(3, 4).double(), torch.randn(3, 6).double())
    assert found.shape == (3, 5, outputs or 1)
    found.square().sum().backward()
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


@pytest.fixture
def shaken(monkeypatch, tmp_path) -> np.ndarray:
    """A record in the file's form, with parts as small as it is."""
    values = np.random.default_rng(0).normal(size=(200, 5)).round(4)
    header = '"Force","Voltage","Acceleration1","Acceleration2","Acceleration3","Fs",'
    rows = [",".join(map(str, row)) + (",400," if i == 0 else ",,") for i, row in enumerate(values)]
    (tmp_path / "f16").mkdir()
    (tmp_path / "f16/F16Data_FullMSine_Level1.csv").write_text("\n".join([header, *rows]))
    monkeypatch.setattr(measurements, "F16_ROWS", 200)
    for name, rows in (("TRAIN", (0, 100)), ("VALID", (100, 130)), ("TEST", (150, 200))):
        monkeypatch.setattr(F16Simulation, name, slice(*rows))
    monkeypatch.setattr(F16Simulation, "RUN", 30)
    monkeypatch.setattr(F16Simulation, "START", 3)
    return values


def test_the_f16_is_held_out_behind_its_training_part(shaken: np.ndarray, tmp_path: Path) -> None:
    """Every fourth row counts, from any row of the training part on."""
    task = F16Simulation(window=5, stride=3, lags=2, every=4, width=4)
    splits = task.load(tmp_path, 0, CPU, torch.float64)
    known = shaken[:100, [0, 2, 3, 4]]
    scaled = (shaken[:, [0, 2, 3, 4]] - known.mean(axis=0)) / known.std(axis=0)
    for part, number, start, length in (
        (splits.train, 1, 4 + 3, 5),
        (splits.train, -1, 79, 5),
        (splits.valid, 0, 100 + 4, 5),
        (splits.test, 0, 150 + 8, 9),
    ):
        past, forcing, targets = (tensor[number].numpy() for tensor in part)
        np.testing.assert_allclose(past.reshape(2, 4), scaled[[start - 4, start]])
        seen = scaled[start : start + 4 * length + 1 : 4]
        np.testing.assert_allclose(forcing, seen[:, 0])
        np.testing.assert_allclose(targets, seen[1:, 1:])
    assert [len(part[0]) for part in (splits.train, splits.valid, splits.test)] == [26, 1, 1]

    found = task.measure(torch.zeros_like(splits.test[2]), splits.test)
    errors = (shaken[162:197:4] - shaken[:100].mean(axis=0))[:, 2:]
    assert found["rmse"].item() == pytest.approx(np.sqrt(np.mean(errors**2)))
    for k in range(3):
        assert found[f"rmse_{k + 1}"].item() == pytest.approx(np.sqrt(np.mean(errors[:, k] ** 2)))


def test_a_picture_shows_every_output_beside_what_was_measured(
    shaken: np.ndarray, tmp_path: Path
) -> None:
    task = F16Simulation(window=5, lags=2, every=4)
    splits = task.load(tmp_path, 0, CPU, torch.float64)
    solver = {"method": "rk4", "options": {"steps": 1}}
    models = [task.build_model({"name": "node"}, solver).double() for _ in range(2)]
    trained = [Trained(name, "C0", 0, m, splits) for name, m in zip("ab", models, strict=True)]
    figure = task.picture("title", trained)
    assert figure is not None
    *outputs, errors = figure.axes
    assert [axes.get_ylabel() for axes in outputs] == list(task.OUTPUTS)
    truth = splits.test[2][0].numpy()
    for k, axes in enumerate(outputs):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), truth[:, k])
    with torch.no_grad():
        made = models[1](*splits.test[:2])[0].numpy()
    np.testing.assert_allclose(outputs[2].lines[2].get_ydata(), made[:, 2])
    drawn = errors.lines[1].get_ydata()
    np.testing.assert_allclose(drawn, np.sqrt(((made - truth) ** 2).mean(axis=1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 41}, "every=41: must be at most 40"),
        ({"every": 4, "window": 1272}, "window=1272: must be at most 1270"),
        ({"width": 0}, "width=0: must be an integer, at least 1"),
    ],
)
def test_what_no_part_of_the_record_has_room_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F16Simulation(**changes)
