"""Runs with the paper's solver beside their twins with a faster one."""

import dataclasses

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from scripts import paper_study, solver_check
from scripts.jobs import plan
from scripts.solver_check import error_markdown, solver_markdown, solver_pairs
from tasks.engine import experiment
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tasks.engine.records.runs import read_runs
from tasks.engine.report.reload import rebuild, training_gradient
from tests.support.made_up_runs import made_up_run

LOSSES = [2.0, 1.0, 0.5, 0.25, 0.125]


def solved(root, solver, *, losses=LOSSES, steps=400, **more):
    folder = made_up_run(
        root,
        task="cifar10",
        optim="adam",
        steps=steps,
        every=100,
        losses=losses,
        steps_per_epoch=100,
        config_hash=("b" if solver == "direct" else "a") * 8,
        **more,
    )
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["solver"]["gradient"] = solver
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("paper", ["adjoint", "adjoint-seminorm"])
def test_curves_are_compared_at_the_steps_that_both_measured(tmp_path, paper):
    # The slow run is the shorter one, and 5% above at its second evaluation.
    solved(tmp_path, paper, losses=[2.0, 1.0, 0.5], steps=200, step_seconds=0.4)
    solved(tmp_path, "direct", losses=[2.0, 1.05, 0.505, 0.1, 0.1])
    (pair,) = solver_pairs(read_runs(tmp_path)[0])
    assert [run.config["solver"]["gradient"] for run in pair] == [paper, "direct"]
    row = solver_markdown([pair]).splitlines()[2]
    # The made-up accuracy at a loss of x is 1 / (1 + x).
    expected = "cifar10 | adam | 0 | 2 | 5% | 0.5 | 0.505 | 66.7% | 66.4%"
    assert row == f"| {expected} |"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"optim_settings": {"lr": 0.5}},
        {"environment": {"device_name": "another"}},
        {"provenance": "a subset"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_differs_in_more_than_the_solver_is_no_twin(tmp_path, other):
    solved(tmp_path, "adjoint")
    solved(tmp_path, "direct", **other)
    assert not solver_pairs(read_runs(tmp_path)[0])


@pytest.mark.parametrize(("usual", "other"), [("adjoint", "direct"), ("direct", "adjoint")])
def test_a_check_is_drawn_apart_from_runs_with_the_usual_solver(tmp_path, usual, other):
    for seed in (0, 1):
        solved(tmp_path / "runs", usual, seed=seed)
    solved(tmp_path / "runs", other)
    out = tmp_path / "out"
    assert paper_study.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert (out / "solver-cifar10-node.png").is_file()
    table, check = (out / "table.md").read_text().split("### The paper's solver")
    assert "| cifar10 | made-up | adam | 4 of 20 | 0, 1 |" in table
    assert table.count("| cifar10 | made-up | adam |") == 2  # one in each of two tables
    assert "| cifar10 | adam | 0 | 4 | 0% |" in check
    assert len((out / "runs.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("divergence", ["rademacher", "gaussian"])
def test_gradients_in_float64_have_the_noise_of_the_run(tmp_path, divergence):
    given = ["task=circle", f"task.divergence={divergence}", "task.hidden=4", "task.batch_size=64"]
    given += ["train.max_epochs=null", "train.max_steps=1", "train.eval_splits=[valid]"]
    given += [f"results.root={tmp_path}", "logger.progress=off", "train.eval_valid_samples=8"]
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        experiment.train(Settings.read(composing.plain(compose("config", overrides=given))))
    (run,) = read_runs(tmp_path)[0]
    own, exact = (training_gradient(run, 8, dtype=dtype) for dtype in (None, "float64"))
    torch.testing.assert_close(own, exact, rtol=1e-3, atol=1e-4)


def test_what_was_measured_before_a_run_went_on_is_measured_again(tmp_path, monkeypatch):
    solved(tmp_path, "direct")
    (run,) = read_runs(tmp_path)[0]
    (run.path / "checkpoint.pt").touch()
    monkeypatch.setattr(solver_check, "training_gradient", lambda *_, **__: torch.ones(2))
    for steps in (100, 200):
        going = dataclasses.replace(run, steps=steps)
        row = error_markdown([going], tmp_path / "errors.csv").splitlines()[2]
        assert row.split(" | ")[3] == str(steps // 100)


def test_errors_are_those_of_the_gradient_at_the_end(tmp_path, monkeypatch):
    given = [
        *(f"results.root={tmp_path}", "model=node", "train.max_epochs=2", "logger.progress=off"),
        *("solver.method=euler", "solver.steps=2", "solver.gradient=direct", "solver.rtol=1e-4"),
    ]
    (job,) = plan(["families/point_cloud/models"], [0], None, given)
    experiment.train(Settings.read(job.config))
    (run,) = read_runs(tmp_path)[0]
    file = tmp_path / "errors.csv"
    row = error_markdown([run], file).splitlines()[2].split(" | ")
    assert row[:4] == ["| nested_spheres", "adam", "0", "2"]

    def gradient(**solver):
        made = rebuild(run, solver=solver, dtype="float64")
        batch = tuple(part[:32] for part in made.splits.train)
        loss = made.task.loss(made.forward(batch), batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, made.model.parameters())])

    exact = gradient(method="dopri5", steps=None, rtol=1e-10, atol=1e-10)
    expected = float((gradient() - exact).norm() / exact.norm())
    assert float(row[4]) == pytest.approx(expected, rel=0.01)
    assert 0 < float(row[5][:-2]) < 1e-3 < expected
    # What was measured once is not measured again; the paper's own solver is not measured.
    monkeypatch.setattr(solver_check, "training_gradient", lambda *_: pytest.fail("again"))
    assert error_markdown([run], file).splitlines()[2].split(" | ") == row
    run.config["solver"]["gradient"] = "adjoint"
    assert error_markdown([run], file) == ""
