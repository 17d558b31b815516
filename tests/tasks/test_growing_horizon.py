"""Training that begins with the first part of each segment: what steps and evaluations see."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor

from snopt.ode.gradients import GRADIENTS
from tasks.data.systems import SYSTEMS
from tasks.engine.config.identity import config_hash
from tasks.task import Batch, Splits
from tasks.trajectories import SimulatedTrajectories
from tests.support import fake
from tests.support.task_cases import make
from tests.tasks.engine.records.test_resume import StopError, assert_same
from tests.tasks.test_trajectory_tasks import ALL, NOISE, TIGHT, loaded, network, small

SMALL = {"trajectories": 2, "unseen": 2, "interval": 3.0, "points": 24, "segment": 11}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"_target_": "torch.optim.Adam", "lr": 0.01},
    "lbfgs": {"_target_": "torch.optim.LBFGS", "lr": 0.1, "max_iter": 2},
    "snopt": {"_target_": "snopt.SNOpt", "lr": 0.01},
    "paper": {"_target_": "snopt.SNOpt", "lr": 0.01, "rule": "paper"},
    "kfac": {"_target_": "snopt.KFAC", "lr": 0.01},
    "samples": {"_target_": "snopt.SNOpt", "lr": 0.5, "rule": "gauss_newton"},
    "outputs": {"_target_": "snopt.GaussNewton"},
}


class Watched(SimulatedTrajectories):
    """Writes down how many rows it solves through, and can stop a run."""

    stop_at: int | None = None

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.trained: list[int] = []
        self.evaluated: set[int] = set()
        instances.append(self)

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        self.splits = super().load(root, seed, device, dtype)
        return self.splits

    def forward(self, model, batch: Batch, noise: torch.Generator) -> Tensor:
        if not model.training:
            self.evaluated.add(batch[1].shape[1])
        else:
            self.trained.append(batch[1].shape[1])
            if len(self.trained) == self.stop_at:
                raise StopError
        return super().forward(model, batch, noise)


instances: list[Watched] = []


def changes(optim: str = "adam", **train: Any) -> dict[str, Any]:
    task = {"_target_": f"{__name__}.Watched", "name": "watched", "dataset": "van_der_pol"}
    horizon = {"initial_horizon": 0.2, "horizon_growth": 0.5}
    return {
        "dtype": "float64",
        "task": {**task, **SMALL, **horizon, "hidden": 4, "batch_size": 8},
        "optim": {**OPTIMIZERS[optim], "name": optim},
        "solver": {"method": "rk4", "steps": 1},
        "train": {"eval_every_epochs": None, **train},
    }


def watched(root: Path, optim: str = "adam", **train: Any) -> Watched:
    summary = fake.train(root, **changes(optim, **train))
    assert summary["outcome"] in ("completed", "budget")
    return instances[-1]


@pytest.mark.parametrize("name", ALL)
def test_a_step_sees_the_first_rows_of_each_segment(name: str) -> None:
    first, over = Fraction(1, 5), Fraction(3, 4)
    task = small(name, initial_horizon=float(first), horizon_growth=float(over))
    batch = loaded(task).train
    assert len(batch[1][0]) == 4
    for percent, rows in ((0, 1), (4, 1), (5, 2), (28, 2), (29, 3), (51, 3), (52, 4), (100, 4)):
        share = first + (1 - first) * min(Fraction(1), Fraction(percent, 100) / over)
        assert rows - 1 < 4 * share <= rows
        seen = task.training_batch(batch, percent / 100)
        assert torch.equal(seen[0], batch[0])
        for part, whole in zip(seen[1:], batch[1:], strict=True):
            assert torch.equal(part, whole[:, :rows])


def test_shares_that_are_whole_rows_are_not_rounded_up() -> None:
    segment = torch.zeros(1, 20)
    for rows in range(1, 21):
        task = small("spiral", initial_horizon=rows / 20)
        seen = task.training_batch((segment[:, :1], segment, segment, segment), 0.0)
        assert seen[1].shape == (1, rows)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_loss_is_that_of_the_whole_with_later_rows_masked(gradient: str) -> None:
    task = small("lotka_volterra", missing=0.3, initial_horizon=0.5)
    batch = tuple(tensor[:4] for tensor in loaded(task).train)
    weights = batch[3].clone()
    weights[:, 2:] = 0.0
    masked = (*batch[:3], 2.0 * weights)
    model = network(solver={**TIGHT, "gradient": gradient})
    found = []
    for seen in (task.training_batch(batch, 0.0), masked):
        model.zero_grad()
        loss = task.loss(task.forward(model, seen, NOISE), seen)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_horizon_grows_with_the_steps(tmp_path, optim: str) -> None:
    """Ten targets a segment, from two to ten of them over the first half of 20 steps."""
    task = watched(tmp_path, optim, max_steps=20)
    assert task.evaluated == {len(part[1][0]) for part in (task.splits.train, task.splits.test)}
    expected = [-(-(2 * 10 + 8 * step) // 10) for step in range(10)] + 10 * [10]
    if optim in ("lbfgs", "outputs"):  # which solve a batch several times
        assert sorted(set(task.trained)) == sorted(set(expected))
        assert task.trained == sorted(task.trained)
    else:
        assert task.trained == expected


def test_epochs_and_seconds_count_alike(tmp_path) -> None:
    task = watched(tmp_path / "epochs", max_steps=None, max_epochs=4)
    steps = len(task.trained)
    assert steps == 4 * -(-len(task.splits.train[0]) // 8)
    assert task.trained == [
        -(-(20 * steps + 160 * min(step, steps / 2)) // (10 * steps)) for step in range(steps)
    ]
    task = watched(tmp_path / "seconds", max_steps=None, max_seconds=0.5, log_every_steps=100)
    assert task.trained == sorted(task.trained)
    assert task.trained[0] < task.trained[-1] == 10
    assert 0.1 < task.trained.count(10) / len(task.trained) < 0.9  # longer solves take longer


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path, monkeypatch) -> None:
    given = changes(max_steps=20, checkpoint_every_steps=3)
    fake.train(tmp_path / "whole", **given)
    whole = instances[-1].trained
    monkeypatch.setattr(Watched, "stop_at", 8)  # at step 8, after a checkpoint at step 6
    with pytest.raises(StopError):
        fake.train(tmp_path / "parts", **given)
    monkeypatch.setattr(Watched, "stop_at", None)
    fake.train(tmp_path / "parts", **given)
    assert instances[-1].trained == whole[6:]
    assert_same(fake.folder(tmp_path / "whole", **given), fake.folder(tmp_path / "parts", **given))


@pytest.mark.parametrize("name", ["initial_horizon", "horizon_growth"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("task", ["spiral", "hare_lynx"])
def test_what_cannot_be(task: str, name: str, value: float) -> None:
    with pytest.raises(
        InstantiationException, match=f"{name}={value}: is a share, above 0 and at most 1"
    ):
        small(task, **{name: value})


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_whole_from_the_start_leaves_a_run_as_it_was(tmp_path, name: str) -> None:
    task = make(name)
    batch = (torch.zeros(3, 2), *(torch.zeros(3, 7) for _ in range(3)))
    assert all(
        torch.equal(*pair) for pair in zip(task.training_batch(batch, 0.0), batch, strict=True)
    )
    before = fake.config(tmp_path)
    whole = {"initial_horizon": 1.0, "horizon_growth": 0.5}
    assert config_hash(fake.config(tmp_path, task=whole)) == config_hash(before)
    grown = fake.config(tmp_path, task={**whole, "initial_horizon": 0.2})
    assert config_hash(grown) != config_hash(before)
