"""Optimizers with ``train`` and ``eval`` are measured, and kept, at their averaged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_optimizer import ScheduleFreeAdamW
from torch.nn import functional

from tasks.engine import experiment
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.averaging import evaluation_weights
from tasks.engine.optimizers.build import build_optimizer
from tasks.engine.records import checkpoint
from tasks.engine.records.runs import read_run
from tasks.engine.report.reload import rebuild
from tasks.engine.training.batches import BatchSampler
from tasks.engine.training.parallel import World
from tests.support import fake

OPTIM = {"_target_": "pytorch_optimizer.ScheduleFreeAdamW", "name": "schedulefree", "lr": 0.05}


class Quiet(fake.Rings):
    """Without dropout and noise."""

    def build_model(self, family, solver):
        model = super().build_model(family, solver)
        model[2].p = 0.0
        return model

    def forward(self, model, batch, noise):
        return model(batch[0])


class Strict(ScheduleFreeAdamW):
    """As the authors' own package: it begins in evaluation mode, and then refuses to step."""

    def __init__(self, params, lr: float = 0.05):
        super().__init__(params, lr=lr)
        self.eval()

    def step(self, closure=None):
        assert all(group["train_mode"] for group in self.param_groups)
        return super().step(closure)


def changes(**optim: Any) -> dict[str, Any]:
    return {
        "task": {"_target_": f"{__name__}.Quiet", "name": "quiet"},
        "dtype": "float64",
        "optim": {**OPTIM, **optim},
        "train": {"max_steps": 9, "eval_every_steps": 4, "eval_every_epochs": None},
    }


def by_hand(root, field_lr: float | None) -> tuple[dict[int, float], torch.nn.Module]:
    """Test losses by step, and the model at the end, of a loop with the package's optimizer."""
    settings = Settings.read(fake.config(root, **changes(field_lr=field_lr)))
    task, world = Quiet(), World(0, 1, torch.device("cpu"))
    splits = experiment.load_splits(settings, task, world)
    model = experiment.build_model(settings, task, world)
    inside = list(model[1].parameters())
    rest = [*model[0].parameters(), *model[3].parameters()]
    optimizer = ScheduleFreeAdamW(
        [{"params": inside, "lr": 0.05 if field_lr is None else field_lr}, {"params": rest}],
        lr=0.05,
    )
    order, losses = BatchSampler(splits.train, task.batch_size, settings.seed), {}
    for step in range(10):
        if step in (0, 4, 8, 9):
            optimizer.eval()
            with torch.no_grad():
                losses[step] = float(
                    functional.cross_entropy(model(splits.test[0]), splits.test[1])
                )
            if step < 9:
                optimizer.train()
        if step < 9:
            points, label = order.next()
            optimizer.zero_grad()
            functional.cross_entropy(model(points), label).backward()
            optimizer.step()
    return losses, model


@pytest.mark.parametrize("field_lr", [None, 0.01])
def test_measured_and_kept_at_averaged_weights(tmp_path, field_lr) -> None:
    wanted, model = by_hand(tmp_path, field_lr)
    fake.train(tmp_path, **changes(field_lr=field_lr))
    folder = fake.folder(tmp_path, **changes(field_lr=field_lr))
    found = {
        row["step"]: row["value"]
        for row in fake.rows(folder)
        if (row["split"], row["metric"]) == ("test", "loss")
    }
    assert found == pytest.approx(wanted, rel=1e-9)
    state = checkpoint.load(folder / "checkpoint.pt")
    assert state is not None
    made = rebuild(read_run(folder)).model.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(made[name], weight, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(state["model"][name], weight, rtol=1e-6)
    assert all(group["train_mode"] for group in state["optimizer"]["param_groups"])


def test_evaluations_change_nothing(tmp_path) -> None:
    seldom = {**changes(), "train": {**changes()["train"], "eval_every_steps": None}}
    for name, asked in (("often", changes()), ("seldom", seldom)):
        fake.train(tmp_path / name, **asked)
    states = [
        checkpoint.load(fake.folder(tmp_path / name, **asked) / "checkpoint.pt")["model"]  # type: ignore[index]
        for name, asked in (("often", changes()), ("seldom", seldom))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_one_that_begins_in_evaluation_mode(tmp_path) -> None:
    strict = fake.train(tmp_path, **changes(_target_=f"{__name__}.Strict", name="strict"))
    assert strict["final"] == fake.train(tmp_path, **changes())["final"]


def test_weights_are_back_after_an_error() -> None:
    net = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(OPTIM, net)
    for _ in range(3):
        net(torch.ones(2)).sum().backward()
        optimizer.step()
    before = net.weight.detach().clone()
    inside = evaluation_weights(optimizer)
    inside.__enter__()
    assert not torch.equal(net.weight, before)
    assert not inside.__exit__(KeyError, KeyError(), None)
    assert torch.equal(net.weight, before)
    assert optimizer.param_groups[0]["train_mode"]
