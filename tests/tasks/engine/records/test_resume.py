"""A run that is killed and taken up again writes what an uninterrupted one writes, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.records import checkpoint
from tests.support import fake

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9},
    "adam": {"_target_": "torch.optim.Adam", "lr": 0.01},
    "lbfgs": {"_target_": "torch.optim.LBFGS", "lr": 0.1, "max_iter": 2},
    "snopt": {
        "_target_": "snopt.SNOpt",
        "lr": 0.02,
        "rule": "paper",
        "momentum": 0.9,
        "refresh_every": 4,
    },
}
OPTIMIZERS["schedulefree"] = {"_target_": "pytorch_optimizer.ScheduleFreeAdamW", "lr": 0.02}
OPTIMIZERS["by_part"] = {
    "_target_": "tasks.engine.optimizers.by_part.ByPart",
    "field": {**OPTIMIZERS["schedulefree"], "_partial_": True},
    "rest": {**OPTIMIZERS["adam"], "_partial_": True},
}
OPTIMIZERS["kron"] = {
    "_target_": "pytorch_optimizer.Kron",
    "lr": 0.01,
    "precondition_dtype": None,
    "balance_prob": 0.5,
}
SCHEDULE = {"name": "cosine", "warmup_steps": 3}
HORIZON = {"rule": "feedback", "T0": 0.7, "every": 3, "lr": 0.3}


def assert_same(left: Path, right: Path) -> None:
    assert fake.rows(left) == fake.rows(right)
    ours, theirs = (checkpoint.load(path / "checkpoint.pt") for path in (left, right))
    assert ours is not None
    assert theirs is not None
    for part in ("model", "optimizer", "order", "random", "state", "solver", "horizon"):
        assert_equal(ours[part], theirs[part])
    for part in ("final", "outcome", "steps", "nfe_forward", "nfe_backward"):
        summaries = [json.loads((path / "run.json").read_text()) for path in (left, right)]
        assert summaries[0][part] == summaries[1][part]


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            if key not in ("evaluated_seconds", "seconds"):
                assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


class StopError(Exception):
    """Stands for whatever ends a process in the middle of a step."""


class Stopping(fake.Rings):
    stop_at: int | None = None

    def forward(self, model, batch, noise):
        outputs = super().forward(model, batch, noise)
        if model.training and self.calls == self.stop_at:
            raise StopError
        return outputs


@pytest.mark.parametrize(
    ("name", "horizon"),
    [*((name, {}) for name in OPTIMIZERS), ("adam", HORIZON), ("snopt", HORIZON)],
)
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, name, horizon) -> None:
    changes = {
        "task": {"_target_": f"{__name__}.Stopping", "name": "stopping"},
        "optim": {**OPTIMIZERS[name], "name": name},
        "schedule": SCHEDULE,
        "horizon": horizon,
        "train": {"checkpoint_every_steps": 5},
    }
    fake.train(tmp_path / "whole", **changes)
    for stop_at in (3, 9, 2):  # before the first checkpoint, then between two, then early again
        monkeypatch.setattr(Stopping, "stop_at", stop_at)
        with pytest.raises(StopError):
            fake.train(tmp_path / "parts", **changes)
    monkeypatch.setattr(Stopping, "stop_at", None)
    assert fake.train(tmp_path / "parts", **changes)["outcome"] == "completed"
    assert_same(
        fake.folder(tmp_path / "whole", **changes), fake.folder(tmp_path / "parts", **changes)
    )


def test_a_state_of_another_device_leaves_the_noise_at_its_seed() -> None:
    noise = torch.Generator().manual_seed(3)
    state = checkpoint.random_state(noise)
    before = noise.get_state()
    checkpoint.load_random_state({**state, "noise": torch.zeros(16, dtype=torch.uint8)}, noise)
    assert torch.equal(noise.get_state(), before)


def train_in_process(root: str, changes: dict[str, Any], ready: Connection) -> None:
    ready.send(None)
    fake.train(root, **changes)


def train_until(root: Path, changes: dict[str, Any], patience: float | None) -> tuple[bool, float]:
    """Train in a process of its own, killed when ``patience`` ends; killed or not, and seconds."""
    context = multiprocessing.get_context("forkserver")
    # Imported once and not per process; torch._dynamo is what the first optimizer imports.
    context.set_forkserver_preload(["torch._dynamo", "tests.tasks.engine.records.test_resume"])
    ready, sender = context.Pipe(duplex=False)
    process = context.Process(target=train_in_process, args=(str(root), changes, sender))
    process.start()
    assert process.pid is not None
    ready.recv()
    begin = time.monotonic()
    process.join(timeout=patience)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0, time.monotonic() - begin


def survive(tmp_path: Path, name: str, kills: int) -> None:
    delays = random.Random(f"{name} {kills}")
    seed = 0
    while kills > 0:
        changes = {
            "seed": seed,
            "optim": {**OPTIMIZERS[name], "name": name},
            "schedule": SCHEDULE,
            "train": {"max_steps": 200, "checkpoint_every_steps": 3, "eval_every_epochs": 2},
        }
        _, length = train_until(tmp_path / "whole", changes, None)
        for attempt in range(100):  # a run that gets nowhere fails, rather than hangs, the test
            longest = 0.6 * length * (1 + attempt / 10)  # the machine may have become slower
            killed, _ = train_until(tmp_path / "killed", changes, delays.uniform(0.0, longest))
            if not killed:
                break
            kills -= 1
        folders = [fake.folder(tmp_path / root, **changes) for root in ("killed", "whole")]
        assert_same(folders[0], folders[1])
        leftovers = [path for path in folders[0].iterdir() if path.name.endswith(".tmp")]
        assert not leftovers
        seed += 1


def test_twenty_kills_change_nothing(tmp_path) -> None:
    survive(tmp_path, "adam", 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_hundred_kills_change_nothing(tmp_path, name) -> None:
    survive(tmp_path, name, 100)
