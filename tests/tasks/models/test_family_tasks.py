"""Families in every task whose shape allows: all build, the affordable ones learn."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.common.checks import ConfigError
from tasks.engine import experiment
from tasks.engine.config.settings import Settings
from tasks.engine.report import family_figures
from tasks.images import ImageClassification
from tasks.models.convnet import ConvNet
from tasks.models.families import FAMILIES, Family
from tasks.models.family_rnn import FamilyRNN
from tasks.models.ode_rnn import ODERNN, GatedCell
from tasks.series import SeriesClassification
from tests.support.composed import read
from tests.support.task_cases import NAMES
from tests.tasks.engine.config.test_config import ONE_STEP, SERIES, TINY

pytestmark = pytest.mark.usefixtures("checked_shapes")
RK4 = {"method": "rk4", "options": {"steps": 2}, "gradient": "direct"}
AFFORDABLE = {
    **{task: TINY[task] for task in ("digits", *SERIES)},
    "nested_spheres": ["solver.rtol=1e-3", "solver.atol=1e-3"],
}


def trained(kinds: Iterable[str]) -> list[tuple[str, str]]:
    """Tasks and kinds of families; two sets of series, of one network, take turns."""
    return [
        (task, kind)
        for task in AFFORDABLE
        for place, kind in enumerate(kinds)
        if task != SERIES[place % 2]
    ]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def families() -> dict[str, dict[str, Any]]:
    """What ``model=...`` stands for, whatever the task."""
    return {name: read("task=digits", f"model={name}").config["model"] for name in FAMILIES}


@pytest.mark.parametrize("task", NAMES)
def test_every_task_with_every_family(task: str, families) -> None:
    own = read(f"task={task}", "optim=adam")
    built = experiment.build_task(own)
    for name, family in families.items():
        settings = Settings.read({**own.config, "model": family})
        if name != "node" and "flows" in settings.config["task"]["_target_"]:
            with pytest.raises(ConfigError, match=r"model=node only\. A flow's state is the data"):
                experiment.check_model(settings, built)
            continue
        if task == "diabetes":
            with pytest.raises(ConfigError, match=r"model=mlp only\. It has no ODE"):
                experiment.check_model(settings, built)
            continue
        if (task, name) == ("silverbox", "nesterovnode"):  # its force outgrows every solver
            with pytest.raises(ConfigError, match="NesterovNODE has no sizes"):
                experiment.check_model(settings, built)
            continue
        experiment.check_model(settings, built)
        model = built.build_model(family, RK4)
        if isinstance(built, ImageClassification):
            assert isinstance(model, ConvNet)
            side = 8 if task == "digits" else 28 if task == "mnist" else 32
            channels = 1 if task in ("digits", "mnist") else 3
            assert model(torch.rand(2, channels, side, side)).shape == (2, 10)
        if isinstance(built, SeriesClassification):
            batch = torch.randn(2, 3, built.inputs), torch.ones(2, 3, dtype=torch.bool)
            assert model(*batch, torch.tensor([1, 2])).shape == (2, built.classes)


@pytest.mark.parametrize(("task", "model"), trained(FAMILIES))
def test_one_step(task: str, model: str, tmp_path) -> None:
    overrides = [f"task={task}", f"model={model}", "optim=snopt", f"results.root={tmp_path}"]
    summary = experiment.train(read(*overrides, *ONE_STEP, *AFFORDABLE[task]))
    assert (summary["outcome"], summary["model"]) == ("completed", model)
    assert summary["nfe_forward"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_image_networks_differ_by_what_the_family_needs(name: str) -> None:
    c = 6
    plain = count(ConvNet(1, c, 10, pool=3, strided=1, solver=RK4))
    model = ConvNet(1, c, 10, pool=3, strided=1, family={"name": name}, solver=RK4)
    wide = c + FAMILIES["anode"].extra
    further = {
        "node": 0,
        "anode": 2 * (9 * (wide + 1) * wide + wide - 9 * (c + 1) * c - c) + 10 * (wide - c),
        "sonode": c * c + c + 9 * c * c,  # momentum, and a field that sees it
        "hbnode": c * c + c + 1,  # momentum, gamma
        "ghbnode": c * c + c + 2,  # momentum, gamma, xi
        "nesterovnode": c * c + c,  # momentum
        "adamnode": c * c + c + 2,  # momentum, beta1, beta2
    }
    assert count(model) - plain == further[name]
    out = model(torch.randn(4, 1, 8, 8))
    (out * torch.randn(out.shape)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def series(n: int = 4, t: int = 6, c: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(n, t, c, generator=generator, dtype=torch.float64)
    observed = torch.rand(n, t, generator=generator) < 0.6
    last = torch.tensor([5, 2, 4, 0])[:n]
    return observations, observed, last


def test_node_makes_the_network_written_for_it() -> None:
    torch.manual_seed(0)
    ours = FamilyRNN({"name": "node"}, 3, 5, 2, elapsed=0.7, solver=RK4).double()
    theirs = ODERNN(3, 5, 2, elapsed=0.7, solver=RK4).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(*series()), theirs(*series()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_series_networks(name: str) -> None:
    torch.manual_seed(0)
    model = FamilyRNN({"name": name}, 3, 5, 2, elapsed=0.7, solver=RK4).double()
    observations, observed, last = series()
    together = model(observations, observed, last)
    for i in range(len(last)):  # alone, and without what follows its end
        end = int(last[i]) + 1
        alone = model(observations[i : i + 1, :end], observed[i : i + 1, :end], last[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)
    (together * torch.randn_like(together)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    open_width = 10 if name in ("sonode", "hbnode", "ghbnode", "nesterovnode", "adamnode") else 5
    assert count(model.cell) == count(GatedCell(3, open_width))
    assert model.head.in_features == FAMILIES[name].width(5)


def test_the_heavy_ball_takes_observations_into_position_and_momentum() -> None:
    torch.manual_seed(0)
    model = FamilyRNN({"name": "hbnode"}, 3, 2, 2, elapsed=0.5, solver=RK4).double()
    observations, _, _ = series(1, 3)
    system = model.block.field
    state = torch.zeros(1, 4, dtype=torch.float64)
    for point in range(3):
        if point:
            for _ in range(2):  # the two classical Runge-Kutta steps, 3/8 rule, by hand
                state = three_eighths(system, state, 0.25)
        state = model.cell(model.cell.project(observations)[:, point], state)
    expected = model.head(state[:, :2])
    found = model(observations, torch.ones(1, 3, dtype=torch.bool), torch.tensor([2]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def three_eighths(system: nn.Module, y: Tensor, dt: float) -> Tensor:
    """A step of y = [h, m] along h' = m, m' = f(h) - gamma m."""
    gamma = system.gamma().item()

    def f(y: Tensor) -> Tensor:
        h, m = y.chunk(2, dim=1)
        return torch.cat([m, system.inner.net(h) - gamma * m], dim=1)

    k1 = f(y)
    k2 = f(y + dt * k1 / 3)
    k3 = f(y + dt * (k2 - k1 / 3))
    k4 = f(y + dt * (k1 - k2 + k3))
    return y + dt * (k1 + 3 * (k2 + k3) + k4) / 8


class Leaky(nn.Module):
    """h' = m, m' = f([h, m]) - rate h: two parts, both seen by the inner field."""

    parts = 2

    def __init__(self, inner: nn.Module, *, rate: float = 0.5) -> None:
        super().__init__()
        self.inner, self.rate = inner, nn.Parameter(torch.tensor([rate]))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, m = state
        return m, self.inner(t, torch.cat([h, m], dim=1)) - self.rate * h


class Decaying(nn.Module):
    """h' = f(t, h) - rate h: a state of one part, whose system is more than its inner field."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rate = inner, nn.Parameter(torch.ones(1))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.inner(t, h) - self.rate * h


TOYS = {
    "leaky": Family(Leaky, inner_parts=2, sizes={"points": (2, 6)}),
    "decaying": Family(Decaying, extra=2, sizes={"points": (4, 6)}),
}


@pytest.mark.parametrize(("task", "kind"), trained(TOYS))
def test_a_family_from_outside_trains(task: str, kind: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TOYS[kind])
    given = [f"task={task}", "model=node", "model.name=toy", "optim=snopt"]
    given += [f"results.root={tmp_path}", *ONE_STEP, *AFFORDABLE[task], "train.max_steps=3"]
    settings = read(*given)
    summary = experiment.train(settings)
    assert (summary["outcome"], summary["model"], summary["steps"]) == ("completed", "toy", 3)
    model = experiment.build_task(settings).build_model(settings.config["model"], RK4)
    assert sum(isinstance(m, TOYS[kind].system) for m in model.modules()) == 1


def test_a_family_without_sizes_is_told_so(monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", Family(Leaky, inner_parts=2))
    settings = read("task=nested_spheres", "model=node", "model.name=toy", "optim=adam")
    with pytest.raises(ConfigError, match=r"Leaky has no sizes for the network 'points'"):
        experiment.check_model(settings, experiment.build_task(settings))


def test_figures_keep_families_without_a_colour() -> None:
    runs = [SimpleNamespace(model=m, seed=s) for m, s in [("toy", 1), ("node", 0), ("toy", 0)]]
    found = family_figures.by_model(runs)
    assert [(name, [run.seed for run in kept]) for name, kept in found.items()] == [
        ("node", [0]),
        ("toy", [0, 1]),
    ]
    assert family_figures.colour("toy") not in family_figures.COLOURS.values()
