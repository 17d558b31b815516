"""Two processes under torchrun train the model that one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.records import checkpoint
from tests.support import fake, parallel_runs

ROOT = Path(__file__).resolve().parents[4]


def start(module: str, *arguments: str) -> None:
    flags = ["--standalone", "--nproc-per-node=2", "-m", module]
    answer = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert answer.returncode == 0, answer.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes, started once, trained and refused; they end where replicas differ."""
    root = tmp_path_factory.mktemp("two")
    start("tests.support.parallel_runs", str(root))
    return root


def compare(two: Path, one: Path, changes: dict[str, Any]) -> None:
    folders = [fake.folder(root, **changes) for root in (two, one)]
    left, right = (checkpoint.load(folder / "checkpoint.pt") for folder in folders)
    assert left is not None
    assert right is not None
    for name, weight in right["model"].items():
        torch.testing.assert_close(left["model"][name], weight, rtol=1e-9, atol=1e-12)
    assert left["horizon"]["T"] == pytest.approx(right["horizon"]["T"], rel=1e-9)
    assert right["horizon"]["T"] != 1.0
    for mine, other in zip(fake.rows(folders[0]), fake.rows(folders[1]), strict=True):
        assert mine["value"] == pytest.approx(other["value"], rel=1e-9)
    summary = json.loads((folders[0] / "run.json").read_text())
    assert summary["environment"]["processes"] == 2


def test_two_processes_equal_one(tmp_path) -> None:
    """As users start it: the run joins a group of its own, and leaves it."""
    changes = parallel_runs.changes(parallel_runs.SGD, horizon=parallel_runs.MOVING)
    start("tests.support.fake", json.dumps({"root": str(tmp_path / "two"), **changes}))
    fake.train(tmp_path / "one", **changes)
    compare(tmp_path / "two", tmp_path / "one", changes)


def test_two_processes_equal_one_without_a_schedule(two, tmp_path) -> None:
    fake.train(tmp_path, **parallel_runs.SCHEDULEFREE)
    compare(two, tmp_path, parallel_runs.SCHEDULEFREE)


@pytest.mark.parametrize("limit", parallel_runs.LOPSIDED)
def test_a_solve_that_fails_in_one_process_and_clocks_that_differ(limit, two) -> None:
    folder = fake.folder(two, **parallel_runs.LOPSIDED[limit])
    record = json.loads((folder / "run.json").read_text())
    assert record["outcome"] == ("completed" if limit == "steps" else "budget"), record["message"]
    assert record["steps"] >= 3
    assert record["skipped_steps"] == 1


def test_sweep_of_two_processes(tmp_path) -> None:
    """One group after another: the second run had waited for ever."""
    changes = ["task=nested_spheres", "optim=snopt", "train.max_steps=2"]
    start("run", *changes, f"results.root={tmp_path}", "--multirun", "seed=0,1")
    outcomes = [json.loads(path.read_text())["outcome"] for path in tmp_path.rglob("run.json")]
    assert outcomes == ["completed", "completed"]


@pytest.mark.parametrize("name", parallel_runs.RULES)
def test_every_rule_in_two_processes_is_that_of_one(name, two, tmp_path) -> None:
    changes = parallel_runs.RULES[name]
    fake.train(tmp_path, **changes)
    left, right = (
        checkpoint.load(fake.folder(root, **changes) / "checkpoint.pt") for root in (two, tmp_path)
    )
    assert left is not None
    assert right is not None
    assert left["state"]["step"] == right["state"]["step"] == 20
    for key, weight in right["model"].items():
        assert (left["model"][key] - weight).norm() < 1e-6 * weight.norm()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch", "divisible by 2"),
        ("gauss_newton", "optim.rule=gauss_newton runs in one process"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_in_both(name, message, two) -> None:
    for rank in (0, 1):
        refused = json.loads((two / f"refused-{rank}.json").read_text())
        assert message in refused[name]


def test_what_fails_in_the_first_process_is_said_once(two) -> None:
    said = [json.loads((two / f"refused-{rank}.json").read_text())["data"] for rank in (0, 1)]
    assert said == ["the data are missing", "process 1: ends, as process 0 failed. It says why."]
