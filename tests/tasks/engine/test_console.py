"""What is typed wrongly is refused in a sentence, before anything is written or read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import snopt
from snopt.ode.gradients import GRADIENTS
from snopt.optim import preconditioner
from tasks.common.checks import ConfigError, fits
from tasks.engine import cli, experiment
from tasks.engine.config import composing, solver
from tasks.engine.config.settings import Settings
from tasks.engine.report import read_run
from tests.support import console, fake

ROOT = Path(__file__).resolve().parents[3]

BUILT = [
    (["optim=adam", "+optim.foreach=maybe"], r"optim\.foreach='maybe': expected bool \| null"),
    (["optim=adam", "optim.lr=inf"], r"optim\.lr=inf: must be finite"),
    (
        ["optim=snopt", "optim.betas=[0.9]"],
        r"optim: SNOpt refuses its settings: betas=\(0\.9,\); expected two numbers",
    ),
    (["optim=sgd", "optim.nesterov=maybe"], r"optim\.nesterov='maybe': expected bool"),
    (["optim=lbfgs", "optim.line_search_fn=foo"], r"LBFGS cannot make a step .*strong_wolfe"),
    (["optim=lbfgs", "optim.max_iter=five"], r"optim\.max_iter='five': expected int"),
    (["optim=adahessian", "optim.update_period=0"], r"cannot make a step"),
    (["optim=adahessian", "optim.create_graph=0"], r"optim\.create_graph=0: expected bool"),
    (["optim=sgd_field", "+optim.field.nesterov=maybe"], r"optim\.field\.nesterov='maybe'"),
    (["optim=sgd_field", "+optim.field.foo=1"], r"optim\.field\.foo: no such key"),
    (["optim=sgd_field", "optim.field.lr=-1"], r"Invalid learning rate"),
    (["optim._target_=os.getcwd"], r"optim\.lr: no such key"),
    (["task._target_=builtins.dict"], r"task\._target_: cannot be called"),
    (["task.batch_size=0"], r"batch_size=0: must be an integer"),
    (["task.hidden=1.5"], r"task\.hidden=1\.5: expected int"),
    (["model=mlp"], r"^model=mlp: no such choice"),
    (["model=hbnode", "model.gamma=abc"], r"model\.gamma='abc': expected float"),
    (["model=hbnode", "model.gamma=-1"], r"Given: gamma=-1"),
    (["model=ghbnode", "model.activation=[1]"], r"model\.activation=\[1\]: expected str"),
    (["model=adamnode", "model.aligned=5"], r"model\.aligned=5: expected bool"),
    (["+model.foo=1"], r"model\.foo: no such key"),
    (["horizon.every=0"], r"horizon: Horizon refuses .*every=0"),
    (["solver=warm", "+solver.options.safety=abc"], r"solver: a solve .*safety"),
    (["solver=warm", "solver.method=scipy_solver"], r"solver: .*scipy_solver"),
]


@pytest.mark.parametrize(("overrides", "message"), BUILT, ids=[" ".join(x[0]) for x in BUILT])
def test_refused_before_data_are_touched(overrides, message, tmp_path) -> None:
    root = f"results.root={tmp_path / 'runs'}"
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = compose("config", ["task=digits", *overrides, root])
    with pytest.raises(ConfigError, match=message):
        experiment.train(Settings.read(composing.plain(config)))
    assert not (tmp_path / "runs").exists()


def test_gradients_are_those_of_the_library() -> None:
    assert set(solver.GRADIENTS) == set(GRADIENTS)
    assert set(solver.SolverSettings.OPTIONS) == set(snopt.ode.methods.settings.OWN_OPTIONS)


def test_types_of_yaml() -> None:
    right = [(1, float), (None, int | None), ([1, 2.0], tuple[float, float]), ("a", str | int)]
    wrong = [(True, int), (1.0, int), ("1", float), (float("nan"), float), ([1], tuple[int, int])]
    assert all(fits(value, annotation) for value, annotation in right)
    assert not any(fits(value, annotation) for value, annotation in wrong)


def test_codes_of_single_runs(tmp_path) -> None:
    root = f"results.root={tmp_path}"
    assert console.run(*console.ONE_STEP, "optim=adam", root).code == 0
    diverging = [*console.ONE_STEP, "optim=sgd", "optim.lr=1e30", "tuned=none", root]
    for _ in range(2):  # the second time it is only looked up
        answer = console.run(*diverging)
        assert answer.code == cli.DIVERGED
        assert "digits/node/sgd seed 0: diverged. Step" in answer.text
    answer = console.run(*console.ONE_STEP, "optim=nothing", root)
    assert answer.code == cli.REFUSED
    assert "Traceback" not in answer.text


def test_codes_of_sweeps(tmp_path) -> None:
    sweep = ["-m", *console.ONE_STEP, "tuned=none", f"results.root={tmp_path}", "optim=sgd,adam"]
    assert console.run(*sweep).code == 0
    answer = console.run(*sweep, "optim.lr=1e30,3e-3")
    assert answer.code == cli.DIVERGED
    summary = answer.text[answer.text.index("Of this sweep did not end well:") :]
    assert summary.count("diverged") == 2
    assert len(list(tmp_path.rglob("run.json"))) == 6


def test_unwritable_results(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["optim=sgd"], ["-m", "optim=sgd"]):
        answer = console.run(*arguments, *console.ONE_STEP, f"results.root={tmp_path / 'file'}")
        assert answer.code == cli.REFUSED
        assert "Traceback" not in answer.text
        assert str(tmp_path / "file") in answer.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: 1\n  b: 2\n", "mapping values are not allowed here"),
        (b"\tlr: 1\n", "cannot start any token"),
        (b"lr: 1\nlr: 2\n", "duplicate key lr"),
        (b"lr: \xff\n", "can't decode byte 0xff"),
        (b'lr: "${"\n', "no viable alternative at input '${'"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_files_of_one_s_own_with_mistakes(tmp_path, flags, content, message) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_bytes(content)
    answer = console.run(*flags, f"--config-dir={tmp_path}", *console.ONE_STEP, "optim=mine")
    assert answer.code == cli.REFUSED
    assert message in answer.text
    assert len(answer.text.splitlines()) < 10


def test_printing_a_file_with_mistakes(tmp_path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("lr: 1\n  b: 2\n")
    answer = console.run(f"--config-dir={tmp_path}", "--cfg=job", "optim=mine")
    assert answer.code == cli.REFUSED
    assert f'"{tmp_path}/optim/mine.yaml", line 2' in answer.text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 3")])
def test_out_of_memory_is_one_line(tmp_path, monkeypatch, error) -> None:
    def fail(settings):
        raise error

    monkeypatch.setattr(experiment, "train", fail)
    answer = console.run(*console.ONE_STEP, f"results.root={tmp_path}")
    assert answer.code == cli.FAILED
    (line,) = answer.text.splitlines()
    assert line.startswith("out of memory")


def test_failed_factorizations_are_counted(tmp_path, monkeypatch, caplog) -> None:
    def fail(*arguments, **keywords):
        raise snopt.FactorizationError("made to fail")

    optim = {"_target_": "snopt.SNOpt", "name": "snopt", "lr": 0.01, "rule": "adam"}
    optim |= {"basis": "gradient", "refresh_every": 5}
    assert fake.train(tmp_path / "a", optim=optim)["refresh_failures"] == 0
    monkeypatch.setattr(preconditioner, "eigenbasis", fail)
    monkeypatch.setattr(preconditioner, "followed", fail)
    summary = fake.train(tmp_path / "b", optim=optim)
    assert summary["refresh_failures"] > 0
    sentence = f"could not be factorized {summary['refresh_failures']} times"
    assert sentence in caplog.text
    run = read_run(fake.folder(tmp_path / "b", optim=optim))
    assert any(sentence in warning for warning in run.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0])
def test_early_interruption_is_one_line(tmp_path, delay) -> None:
    process = subprocess.Popen(
        [sys.executable, "run.py", "task=digits", "optim=adam", f"results.root={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in text
    assert "stop" in text.lower()
