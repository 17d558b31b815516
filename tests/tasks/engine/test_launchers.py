"""Sweeps of four jobs, for real: one after another, on this machine's cores, through submitit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
JOBS = ["task=digits", "optim=sgd,adam", "seed=0,1"]
SMALL = [
    *("task.hidden=4", "task.batch_size=32", "solver.method=euler"),
    *("train.max_steps=2", "train.eval_at_start=false", "train.eval_train_samples=50"),
]


def sweep(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", "-m", *JOBS, *SMALL, f"results.root={root}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def outcomes(root: Path) -> dict[tuple[str, int], str]:
    summaries = [json.loads(path.read_text()) for path in root.rglob("run.json")]
    return {(run["optim"], run["seed"]): run["outcome"] for run in summaries}


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=basic"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
    ],
    ids=lambda arguments: arguments[0].partition("=")[2],
)
def test_sweep_of_four(tmp_path, launcher) -> None:
    answer = sweep(tmp_path, *launcher)
    assert answer.returncode == 0, answer.stderr
    expected = {(optim, seed): "completed" for optim in ("sgd", "adam") for seed in (0, 1)}
    assert outcomes(tmp_path) == expected


def test_failed_job_does_not_stop_the_others(tmp_path) -> None:
    blocked = tmp_path / "digits" / "node" / "adam"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    answer = sweep(tmp_path)
    assert answer.returncode == 2
    assert "could not create" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert outcomes(tmp_path) == {("sgd", 0): "completed", ("sgd", 1): "completed"}
