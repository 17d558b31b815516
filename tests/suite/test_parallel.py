"""Two processes under torchrun train the model that one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks import checkpoint
from tests.suite import fake

ROOT = Path(__file__).resolve().parents[2]


class Plain(fake.Rings):
    """Without dropout and noise, which each process draws for itself."""

    def build_model(self, family, solver):
        model = super().build_model(family, solver)
        model[2].p = 0.0
        return model

    def forward(self, model, batch, noise):
        return model(batch[0])


CHANGES: dict[str, Any] = {
    "task": {"_target_": f"{__name__}.Plain", "name": "plain"},
    "dtype": "float64",
    "optim": {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.1, "momentum": 0.9},
    "horizon": {"rule": "feedback", "every": 3},
}


def torchrun(root: Path, processes: int = 2, **changes: Any) -> subprocess.CompletedProcess[str]:
    arguments = json.dumps({"root": str(root), **changes})
    flags = ["--standalone", f"--nproc-per-node={processes}", "-m", "tests.suite.fake"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_equal_one(tmp_path) -> None:
    answer = torchrun(tmp_path / "two", **CHANGES)
    assert answer.returncode == 0, answer.stderr
    fake.train(tmp_path / "one", **CHANGES)
    folders = [fake.folder(tmp_path / root, **CHANGES) for root in ("two", "one")]
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


def test_batches_that_cannot_be_shared(tmp_path) -> None:
    answer = torchrun(tmp_path, task={**CHANGES["task"], "batch_size": 15})
    assert answer.returncode != 0
    assert "divisible by 2" in answer.stderr
