"""Sweeps, for real: one after another, on this machine's cores, in submitit's processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import console

ROOT = Path(__file__).resolve().parents[3]
SMALL = [
    "task=digits",
    *("task.hidden=4", "task.batch_size=32", "solver.method=euler"),
    *("train.max_steps=2", "train.eval_at_start=false", "train.eval_train_samples=50"),
]


def sweep(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", "-m", *SMALL, f"results.root={root}", *arguments],
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
    ("launcher", "seeds"),
    [
        # Four jobs for two workers, so that each trains one after another.
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], (0, 1)),
        # Here every job is a process of its own.
        (["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"], (0,)),
    ],
    ids=["joblib", "submitit_local"],
)
def test_sweep_in_processes(tmp_path, launcher, seeds) -> None:
    answer = sweep(tmp_path, "optim=sgd,adam", f"seed={','.join(map(str, seeds))}", *launcher)
    assert answer.returncode == 0, answer.stderr
    expected = {(optim, seed): "completed" for optim in ("sgd", "adam") for seed in seeds}
    assert outcomes(tmp_path) == expected


JOBS = ["-m", *SMALL, "optim=sgd,adam", "seed=0,1"]


def test_sweep_of_four(tmp_path) -> None:
    answer = console.run(*JOBS, "hydra/launcher=basic", f"results.root={tmp_path}")
    assert answer.code == 0, answer.text
    expected = {(optim, seed): "completed" for optim in ("sgd", "adam") for seed in (0, 1)}
    assert outcomes(tmp_path) == expected


def test_failed_job_does_not_stop_the_others(tmp_path) -> None:
    blocked = tmp_path / "digits" / "node" / "adam"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    answer = console.run(*JOBS, f"results.root={tmp_path}")
    assert answer.code == 2
    assert "could not create" in answer.text
    assert "Traceback" not in answer.text
    assert outcomes(tmp_path) == {("sgd", 0): "completed", ("sgd", 1): "completed"}
