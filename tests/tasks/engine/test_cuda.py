"""Runs on CUDA: every kind of task, resuming on either device, the clock, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from tasks.engine import experiment
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tasks.engine.records import checkpoint
from tasks.engine.report import read_runs, write_report
from tasks.engine.training.evaluation import preserving_state
from tests.support import fake
from tests.support.devices import DEVICE, ONLY_CUDA, devices, flat, same
from tests.tasks.engine.config.test_config import ONE_STEP, TINY
from tests.tasks.engine.records.test_resume import (
    HORIZON,
    OPTIMIZERS,
    SCHEDULE,
    StopError,
    Stopping,
)

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[3]
MORE = {
    "lotka_volterra": ["task.hidden=8"],
    "nested_spheres": [],
    "hare_lynx": ["task.hidden=8"],
}


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        yield


def trained(root: Path, *overrides: str) -> dict[str, Any]:
    words = [f"device={DEVICE}", f"results.root={root}", *ONE_STEP, *overrides]
    settings = Settings.read(composing.plain(compose("config", overrides=words)))
    return dict(experiment.train(settings))


@pytest.mark.filterwarnings("ignore")  # of settings tuned for another length
@pytest.mark.parametrize("optim", ["snopt", "snopt_paper", "adam"])
@pytest.mark.parametrize("task", [*TINY, *MORE])
def test_every_embedded_task_makes_steps(tmp_path: Path, task: str, optim: str) -> None:
    words = [f"task={task}", f"optim={optim}", *TINY.get(task, MORE.get(task, []))]
    summary = trained(tmp_path, *words, "train.max_steps=3")
    assert summary["outcome"] == "completed"
    assert summary["steps"] == 3
    assert summary["environment"]["device"].startswith(DEVICE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["hbnode", "sonode"])
def test_families_on_a_series(tmp_path: Path, model: str) -> None:
    words = ["task=japanese_vowels", f"model={model}", *TINY["japanese_vowels"]]
    assert trained(tmp_path, *words)["outcome"] == "completed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optim", ["gauss_newton", "snopt_gauss_newton"])
def test_gauss_newton_on_trajectories(tmp_path: Path, optim: str) -> None:
    words = ["task=spiral", f"optim={optim}", *TINY["spiral"], "solver.gradient=direct"]
    assert trained(tmp_path, *words, "train.max_steps=3")["outcome"] == "completed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("divergence", ["rademacher", "gaussian", "exact"])
def test_flows(tmp_path: Path, divergence: str) -> None:
    words = ["task=circle", *TINY["circle"], f"task.divergence={divergence}"]
    assert trained(tmp_path, *words, "train.max_steps=3")["outcome"] == "completed"


def test_the_command_line_trains_and_the_report_reads_it(tmp_path: Path) -> None:
    words = ["task=digits", "optim=snopt", f"device={DEVICE}", f"results.root={tmp_path}"]
    words += ["train.max_steps=12", "train.eval_train_samples=100", "logger.progress=off"]
    answer = subprocess.run(
        [sys.executable, "run.py", *words, *TINY["digits"]],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    (run,) = read_runs(tmp_path)[0]
    assert run.steps == 12
    summary = json.loads((run.path / "run.json").read_text())
    assert summary["environment"]["device"].startswith(DEVICE)
    assert sum(summary["buckets"].values()) == pytest.approx(summary["wall"], rel=0.2)
    assert any(path.suffix == ".html" for path in write_report(tmp_path).files)


def changes(name: str, device: str = DEVICE, **more: Any) -> dict[str, Any]:
    return {
        "device": device,
        "dtype": "float64",
        "task": {"_target_": f"{Stopping.__module__}.Stopping", "name": "stopping"},
        "optim": {**OPTIMIZERS[name], "name": name},
        "schedule": SCHEDULE,
        "train": {"checkpoint_every_steps": 5},
        **more,
    }


DEFAULT = {"_target_": "snopt.SNOpt", "lr": 0.01}
RESUMED = [*((name, {}) for name in ("sgd", "adam", "lbfgs", "snopt")), ("snopt", HORIZON)]


@pytest.mark.parametrize(("name", "horizon"), RESUMED)
def test_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, horizon: dict[str, Any]
) -> None:
    settings = changes(name, horizon=horizon)
    fake.train(tmp_path / "whole", **settings)
    for stop_at in (9, 2):
        monkeypatch.setattr(Stopping, "stop_at", stop_at)
        with pytest.raises(StopError):
            fake.train(tmp_path / "parts", **settings)
    monkeypatch.setattr(Stopping, "stop_at", None)
    fake.train(tmp_path / "parts", **settings)
    states = [saved(tmp_path / part, **settings) for part in ("whole", "parts")]
    same(*(flat(state["model"].values()) for state in states), 1e-9)
    for part in ("order", "random"):
        assert str(states[0][part]) == str(states[1][part])


def saved(root: Path, **settings: Any) -> dict[str, Any]:
    state = checkpoint.load(fake.folder(root, **settings) / "checkpoint.pt")
    assert state is not None
    assert devices(state) <= {"cpu"}
    return state


@pytest.mark.parametrize("name", ["adam", "lbfgs", "snopt", "default"])
@pytest.mark.parametrize("first", ["cpu", DEVICE])
def test_a_run_goes_on_on_the_other_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, name: str
) -> None:
    """It goes on with the weights, the optimizer and the batches; noise is of the device."""
    second = "cpu" if first == DEVICE else DEVICE
    monkeypatch.setitem(OPTIMIZERS, "default", DEFAULT)
    settings = changes(name, "auto", horizon=HORIZON)
    here = torch.cuda.is_available
    monkeypatch.setattr(torch.cuda, "is_available", lambda: first == "cuda" and here())
    monkeypatch.setattr(Stopping, "stop_at", 14)
    with pytest.raises(StopError):
        fake.train(tmp_path, **settings)
    assert saved(tmp_path, **settings)["state"]["step"] > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: second == "cuda" and here())
    monkeypatch.setattr(Stopping, "stop_at", None)
    summary = fake.train(tmp_path, **settings)
    assert (summary["outcome"], summary["steps"]) == ("completed", 20)
    assert summary["environment"]["device"].startswith(second)
    # Dropout and jitter are other numbers; what they are the noise of is the same run.
    whole = fake.train(tmp_path / "whole", **settings)
    for split, metrics in whole["final"].items():
        assert summary["final"][split]["loss"] == pytest.approx(metrics["loss"], rel=0.2)


def test_the_probe_and_its_noise(tmp_path: Path) -> None:
    settings = changes("adam", probe={"every": 4}, train={"max_steps": 8})
    settings["solver"] = {"gradient": "direct"}
    fake.train(tmp_path, **settings)
    errors = [
        r["value"]
        for r in fake.rows(fake.folder(tmp_path, **settings))
        if r["metric"] == "probe/error"
    ]
    assert len(errors) == 2
    assert all(0.0 < error < 0.5 for error in errors)  # euler beside the exact flow, same dropout


@ONLY_CUDA
def test_evaluation_leaves_the_stream_of_the_device_alone() -> None:
    model = torch.nn.Dropout(0.5)
    torch.manual_seed(0)
    wanted = torch.rand(3, device=DEVICE)
    torch.manual_seed(0)
    with preserving_state(model, torch.device(DEVICE, 0)):
        torch.rand(5, device=DEVICE)
    assert torch.equal(torch.rand(3, device=DEVICE), wanted)
