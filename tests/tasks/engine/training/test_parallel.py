"""Two processes under torchrun train the model that one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import snopt
from tasks.engine.records import checkpoint
from tests.support import fake, parallel_rules

ROOT = Path(__file__).resolve().parents[4]


class Plain(fake.Rings):
    """Without dropout and noise, which each process draws for itself."""

    def build_model(self, family, solver):
        model = super().build_model(family, solver)
        model[2].p = 0.0
        return model

    def forward(self, model, batch, noise):
        return model(batch[0])


class Lopsided(Plain):
    """Its third solve fails in the second process alone; weights that drift apart end the run."""

    def forward(self, model, batch, noise):
        if model.training:
            own = [p.detach().clone() for p in model.parameters()]
            theirs: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(theirs, own)
            assert all(torch.equal(a, b) for a, b in zip(theirs[0], theirs[1], strict=True))
            self.calls += 1
            if self.calls == 3 and dist.get_rank() == 1:
                raise snopt.SolverError(reason="made to fail", time=0.5, dt=0.0, nfe=3)
        return model(batch[0])


CHANGES: dict[str, Any] = {
    "task": {"_target_": f"{__name__}.Plain", "name": "plain"},
    "dtype": "float64",
    "optim": {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.1, "momentum": 0.9},
    "horizon": {"rule": "feedback", "every": 3},
}


def torchrun(root: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    return start("tests.support.fake", json.dumps({"root": str(root), **changes}))


def start(module: str, argument: str) -> subprocess.CompletedProcess[str]:
    flags = ["--standalone", "--nproc-per-node=2", "-m", module]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, argument],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "optim",
    [
        CHANGES["optim"],
        {"_target_": "pytorch_optimizer.ScheduleFreeAdamW", "name": "schedulefree", "lr": 0.02},
    ],
)
def test_two_processes_equal_one(tmp_path, optim) -> None:
    changes = {**CHANGES, "optim": optim}
    answer = torchrun(tmp_path / "two", **changes)
    assert answer.returncode == 0, answer.stderr
    fake.train(tmp_path / "one", **changes)
    folders = [fake.folder(tmp_path / root, **changes) for root in ("two", "one")]
    two, one = (checkpoint.load(folder / "checkpoint.pt") for folder in folders)
    assert two is not None
    assert one is not None
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-9, atol=1e-12)
    assert two["horizon"]["T"] == pytest.approx(one["horizon"]["T"], rel=1e-9)
    assert one["horizon"]["T"] != 1.0
    for left, right in zip(fake.rows(folders[0]), fake.rows(folders[1]), strict=True):
        assert left["value"] == pytest.approx(right["value"], rel=1e-9)
    summary = json.loads((folders[0] / "run.json").read_text())
    assert summary["environment"]["processes"] == 2


@pytest.mark.parametrize("limit", ["steps", "seconds"])
def test_a_solve_that_fails_in_one_process_and_clocks_that_differ(limit, tmp_path) -> None:
    changes = {
        **CHANGES,
        "task": {"_target_": f"{__name__}.Lopsided", "name": "lopsided"},
        "solver": {"on_failure": "skip_step"},
        "schedule": {"name": "cosine"},
        "train": {"max_steps": 8} if limit == "steps" else {"max_steps": None, "max_seconds": 0.5},
    }
    answer = torchrun(tmp_path, **changes)
    assert answer.returncode == 0, answer.stderr
    record = json.loads((fake.folder(tmp_path, **changes) / "run.json").read_text())
    assert record["outcome"] == ("completed" if limit == "steps" else "budget"), record["message"]
    assert record["steps"] >= 3
    assert record["skipped_steps"] == 1


def test_batches_that_cannot_be_shared(tmp_path) -> None:
    answer = torchrun(tmp_path, task={**CHANGES["task"], "batch_size": 15})
    assert answer.returncode != 0
    assert "divisible by 2" in answer.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Runs of two processes with every rule, which end where replicas differ in a bit."""
    root = tmp_path_factory.mktemp("two")
    answer = start("tests.support.parallel_rules", str(root))
    assert answer.returncode == 0, answer.stderr
    return root


@pytest.mark.parametrize("settings", parallel_rules.RULES, ids=lambda x: "-".join(x.values()))
def test_every_rule_in_two_processes_is_that_of_one(settings, two, tmp_path) -> None:
    changes = parallel_rules.changes(settings)
    fake.train(tmp_path, **changes)
    left, right = (
        checkpoint.load(fake.folder(root, **changes) / "checkpoint.pt") for root in (two, tmp_path)
    )
    assert left is not None
    assert right is not None
    assert left["state"]["step"] == right["state"]["step"] == 20
    for name, weight in right["model"].items():
        assert (left["model"][name] - weight).norm() < 1e-6 * weight.norm()


def test_gauss_newton_is_refused_in_two_processes(tmp_path) -> None:
    answer = torchrun(
        tmp_path, optim={"_target_": "snopt.SNOpt", "name": "snopt", "rule": "gauss_newton"}
    )
    assert answer.returncode != 0
    assert "optim.rule=gauss_newton runs in one process" in answer.stderr
