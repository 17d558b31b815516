import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.checks import ConfigError
from tasks.engine.config import composing

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
    ("overrides", "message"),
    [
        (["task=digit"], r"task=digit: no such choice\. Did you mean digits\? Choices: .*mnist"),
        (
            ["optim=sdg"],
            r"optim=sdg: no such choice\. Did you mean sgd\? Choices: adahessian, adam, ",
        ),
        (["trian.max_steps=3"], r"trian: no such key\. Did you mean train\? Keys: data, device"),
        (["train.max_step=3"], r"train\.max_step: .*Did you mean max_steps\? Keys of train: "),
        (["optim=sgd", "optim.momentun=0"], r"optim\.momentun: .*momentum\? Keys of optim: "),
        (["train.max_steps=-1"], r"train\.max_steps=-1: must be at least 1"),
        (["results=here"], r"results=here: results is a section; .*results\.root="),
        (["train=5"], r"train=5: train is a section; .*train\.max_steps="),
        (["seed=-1"], r"seed=-1: must be an integer, at least 0"),
        (["threads=0"], r"threads=0: must be an integer, at least 1, or null"),
        (["device=gpu"], r"device=gpu: no such choice\. .*Choices: auto, cpu, cuda"),
        (["train.max_steps=("], r"train\.max_steps=\(: not an override\. Write key=value"),
        (["seed=1,2"], r"seed=1,2: several values\. Add -m"),
    ],
)
def test_mistakes_are_explained(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        composing.check_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=digits,mnits"], r"task=mnits: .*Did you mean mnist"),
        (["optim=sgd,adam", "optim.momentum=0.5"], r"optim\.momentum: no such key"),
        (["train.max_steps=5,-5"], r"train\.max_steps=-5"),
    ],
)
def test_mistakes_in_a_later_job_of_a_sweep(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        composing.check_overrides(overrides, sweep=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=digits", "optim=adam", "seed=0,1,2", "hydra/launcher=joblib"],
        ["task=digits", "optim=sgd,adam", "optim.lr=1e-3,1e-2", "tuned=none"],
        ["optim=sgd", "+optim.maximize=true", "train.max_epochs=null", "train.max_seconds=3"],
    ],
)
def test_what_is_right_passes(overrides) -> None:
    composing.check_overrides(overrides, sweep=True)


def test_check_does_not_import_torch() -> None:
    code = (
        "import sys, tasks.engine.cli as c; c.check_overrides(['task=digits']); print(*sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "torch" not in answer.stdout.split()


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
