"""The gradient-quality probe: what it finds, and that training does not feel it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import snopt
from tasks.engine.records import checkpoint
from tasks.engine.training.parallel import World
from tasks.engine.training.probe import GradientProbe, compare
from tests.support import fake

SNOPT = {"_target_": "snopt.SNOpt", "name": "snopt", "lr": 0.02, "refresh_every": 3}


class Adaptive(fake.Rings):
    """Rings with the solver that is asked for, dropout, and noise of the task's own."""

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 4),
            snopt.ODEBlock(fake.Field(), (0.0, 1.0), **solver),
            nn.Dropout(0.3),
            nn.Linear(4, 2),
        )


def changes(gradient: str, every: int | None, **task: Any) -> dict[str, Any]:
    target = {"_target_": f"{__name__}.Adaptive", "name": "rings", **task}
    warm = {"gradient": gradient, "warm_start": True}
    train = {"max_steps": 8, "checkpoint_every_steps": 4}
    return {"task": target, "optim": SNOPT, "solver": warm, "train": train,
            "probe": {"every": every}}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_training_does_not_feel_it(tmp_path, gradient: str) -> None:
    found = []
    for every in (None, 3):
        fake.train(tmp_path, **changes(gradient, every))
        folder = fake.folder(tmp_path, **changes(gradient, every))
        rows = fake.rows(folder)
        probed = {(r["step"], r["metric"]) for r in rows if r["metric"].startswith("probe/")}
        assert {step for step, _ in probed} == ({3, 6} if every else set())
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        kept = {key: state[key] for key in ("model", "optimizer", "solver", "order", "random")}
        found.append(([r for r in rows if not r["metric"].startswith("probe/")], kept))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize(("tolerance", "low", "high"), [(1e-7, 0.0, 2e-5), (0.05, 1e-4, 0.3)])
def test_it_sees_the_solver_and_not_the_noise(
    tmp_path, tolerance: float, low: float, high: float
) -> None:
    """Dropout and noise are the same in float64: nothing is left at a tight tolerance."""
    settings = changes("adjoint", 2)
    settings["solver"] |= {"rtol": tolerance, "atol": tolerance}
    summary = fake.train(tmp_path, **settings)
    rows = fake.rows(fake.folder(tmp_path, **settings))
    for part in ("", "field_"):
        errors = [r["value"] for r in rows if r["metric"] == f"probe/{part}error"]
        cosines = [r["value"] for r in rows if r["metric"] == f"probe/{part}cosine"]
        assert len(errors) == len(cosines) == 4
        assert all(low <= error < high for error in errors), errors
        assert all(1 - cosine < high for cosine in cosines)
    assert summary["buckets"]["evaluation"] > 0


def test_error_of_coarse_steps_against_torchdiffeq() -> None:
    task = fake.Rings()
    torch.manual_seed(0)
    block = snopt.ODEBlock(fake.Field(), method="euler", gradient="direct", options={"steps": 2})
    model = nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2)).double()
    noise = torch.Generator()
    batch = task.load(None, 0, torch.device("cpu"), torch.float64).train
    state = noise.get_state()
    randomness = checkpoint.random_state(noise)
    task.loss(task.forward(model, batch, noise), batch).backward()
    got = GradientProbe(task, model, noise, World(0, 1, torch.device("cpu"))).measure(
        batch, randomness
    )
    found = [p.grad.clone() for p in model.parameters()]
    noise.set_state(state)
    model.zero_grad()
    points = batch[0] + 0.01 * torch.randn(batch[0].shape, generator=noise, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    end = torchdiffeq.odeint(block.field, model[0](points), times, rtol=1e-11, atol=1e-11)[-1]
    task.loss(model[2](end), batch).backward()
    flat = torch.cat([g.flatten() for g in found])
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    error = float((flat - wanted).norm() / wanted.norm())
    assert error > 1e-3
    assert got["probe/error"] == pytest.approx(error, rel=1e-5)
    cosine = float(torch.cosine_similarity(flat, wanted, dim=0))
    assert got["probe/cosine"] == pytest.approx(cosine, abs=1e-9)
    assert got["probe/field_error"] != got["probe/error"]


def test_hooks_are_neither_called_nor_copied() -> None:
    class Listener:
        heard = 0

        def __call__(self, *args: Any) -> None:
            self.heard += 1

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    task, noise = fake.Rings(), torch.Generator()
    solver = {"gradient": "direct", "options": {"steps": 2}}
    model = task.build_model({}, solver).double().train()
    batch = task.load(None, 0, torch.device("cpu"), torch.float64).train
    randomness = checkpoint.random_state(noise)
    task.loss(task.forward(model, batch, noise), batch).backward()
    listener = Listener()
    for module in model.modules():
        module.register_forward_hook(listener)
    probe = GradientProbe(task, model, noise, World(0, 1, torch.device("cpu")))
    assert "probe/error" in probe.measure(batch, randomness)
    assert listener.heard == 0
    model(batch[0])
    assert listener.heard > 0  # they still listen to the model


def test_a_failed_reference_is_recorded(tmp_path, caplog) -> None:
    settings = changes("direct", 1, fail_at=[2])  # the probe's own forward pass at step 1
    summary = fake.train(tmp_path, **settings)
    assert (summary["outcome"], summary["steps"], summary["skipped_steps"]) == ("completed", 8, 0)
    rows = [r for r in fake.rows(fake.folder(tmp_path, **settings)) if r["split"] == "train"]
    assert [r["step"] for r in rows if r["metric"] == "probe/failed"] == [1]
    assert [r["step"] for r in rows if r["metric"] == "probe/error"] == list(range(2, 9))
    assert "no reference for the gradient: SolverError: made to fail" in caplog.text


def test_closures_are_measured_once_a_step(tmp_path) -> None:
    settings = changes("direct", 4)
    settings["optim"] = {"_target_": "torch.optim.LBFGS", "name": "lbfgs", "lr": 0.1, "max_iter": 3}
    fake.train(tmp_path, **settings)
    rows = fake.rows(fake.folder(tmp_path, **settings))
    assert [r["step"] for r in rows if r["metric"] == "probe/error"] == [4, 8]


def test_without_it_a_run_keeps_its_identity(tmp_path) -> None:
    plain = fake.folder(tmp_path)
    assert fake.folder(tmp_path, probe={"every": None}) == plain
    assert fake.folder(tmp_path, probe={"every": 5}) != plain


def test_compare() -> None:
    g, r = torch.tensor([3.0, 0.0]).double(), torch.tensor([0.0, 4.0]).double()
    assert compare([(g, r)]) == (1.25, 0.0)
    assert compare([(g[:1], r[:1]), (g[1:], r[1:])]) == (1.25, 0.0)
    assert compare([(r, r)]) == (0.0, 1.0)
