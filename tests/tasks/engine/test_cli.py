import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments", [["optim=nothing"], ["-m", "task=digits", "optim=sgd,nothing"]]
)
def test_mistake_at_the_console(tmp_path, arguments) -> None:
    answer = run(*arguments, f"results.root={tmp_path}")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "optim=nothing: no such choice" in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweep", [False, True])
def test_refused_value_at_the_console(tmp_path, sweep) -> None:
    arguments = ["task=digits", "optim=sgd", "optim.lr=-1", f"results.root={tmp_path}"]
    answer = run(*(["-m"] if sweep else []), *arguments)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "SGD refuses its settings: Invalid learning rate: -1" in answer.stderr


def test_help_lists_what_can_be_chosen() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    for word in ("japanese_vowels", "adamw", "train.max_seconds", "SNOPT_DATA", "python run.py -m"):
        assert word in answer.stdout


def test_cfg_prints_the_composed_configuration() -> None:
    answer = run("--cfg", "job", "task=digits", "optim=adam", "optim.lr=0.5")
    assert answer.returncode == 0
    assert "lr: 0.5" in answer.stdout
    assert "hydra:" not in answer.stdout


def test_run_writes_its_folder_and_nothing_else(tmp_path) -> None:
    before = {path.name for path in ROOT.iterdir()}
    arguments = ["task=digits", "optim=adam", "task.hidden=4", "train.max_steps=2"]
    answer = run(*arguments, f"results.root={tmp_path}", "train.eval_at_start=false")
    assert answer.returncode == 0, answer.stderr
    assert "completed. Made all 2 steps" in answer.stderr
    folders = [path.parent for path in tmp_path.rglob("run.json")]
    assert [folder.relative_to(tmp_path).parts[:3] for folder in folders] == [
        ("digits", "node", "adam")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}
    assert {path.name for path in ROOT.iterdir()} - before <= {".coverage"}


def test_sweep_over_schedules_that_share_a_setting(tmp_path) -> None:
    """The schedule without the setting is trained as if it had not been given."""
    arguments = ["task=digits", "optim=sgd", "task.hidden=4", "train.max_steps=1"]
    arguments += [f"results.root={tmp_path}", "train.eval_at_start=false"]
    names = ["schedule.name=constant,cosine", "schedule.final_factor=0.1"]
    answer = run("-m", *arguments, *names)
    assert answer.returncode == 0, answer.stderr
    said = "schedule.final_factor=0.1: is of name=linear and name=cosine, and name=constant here"
    assert (answer.stdout + answer.stderr).count(f"{said}: left out of this job") == 1
    assert len(list(tmp_path.rglob("run.json"))) == 2
    assert run(*arguments).returncode == 0
    assert len(list(tmp_path.rglob("run.json"))) == 2  # its folder was there
