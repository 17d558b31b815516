import os
import subprocess
import sys
from pathlib import Path

from tests.support import console

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


def test_mistake_at_the_console(tmp_path) -> None:
    answer = run("optim=nothing", f"results.root={tmp_path}")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "optim=nothing: no such choice" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistake_in_a_sweep(tmp_path) -> None:
    answer = console.run("-m", "task=digits", "optim=sgd,nothing", f"results.root={tmp_path}")
    assert answer.code == 2
    assert "Traceback" not in answer.text
    assert "optim=nothing: no such choice" in answer.text
    assert list(tmp_path.iterdir()) == []


REFUSED = ["task=digits", "optim=sgd", "optim.lr=-1"]
REFUSAL = "SGD refuses its settings: Invalid learning rate: -1"


def test_refused_value(tmp_path) -> None:
    answer = console.run(*REFUSED, f"results.root={tmp_path}")
    assert answer.code == 2
    assert "Traceback" not in answer.text
    assert REFUSAL in answer.text


def test_refused_value_at_the_console(tmp_path) -> None:
    """Of a sweep, which ends by another way."""
    answer = run("-m", *REFUSED, f"results.root={tmp_path}")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert REFUSAL in answer.stderr


def test_help_lists_what_can_be_chosen() -> None:
    answer = console.run("--help")
    assert answer.code == 0
    for word in ("japanese_vowels", "adamw", "train.max_seconds", "SNOPT_DATA", "python run.py -m"):
        assert word in answer.text


def test_cfg_prints_the_composed_configuration() -> None:
    answer = console.run("--cfg=job", "task=digits", "optim=adam", "optim.lr=0.5")
    assert answer.code == 0
    assert "lr: 0.5" in answer.text
    assert "hydra:" not in answer.text


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
    arguments = [*console.ONE_STEP, "optim=sgd", f"results.root={tmp_path}"]
    names = ["schedule.name=constant,cosine", "schedule.final_factor=0.1"]
    answer = console.run("-m", *arguments, *names)
    assert answer.code == 0, answer.text
    said = "schedule.final_factor=0.1: is of name=linear and name=cosine, and name=constant here"
    assert answer.text.count(f"{said}: left out of this job") == 1
    assert len(list(tmp_path.rglob("run.json"))) == 2
    assert console.run(*arguments).code == 0
    assert len(list(tmp_path.rglob("run.json"))) == 2  # its folder was there
