"""Runs with the paper's solver beside their twins with a faster one."""

import pytest
import yaml

from scripts import paper_study
from scripts.solver_check import solver_markdown, solver_pairs
from tasks.engine.records.runs import read_runs
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
    expected = "cifar10 | adam | 0 | 2 | 5% | 0.5 | 0.505 | 66.7% | 66.4% | 400 | 100"
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


def test_a_check_is_drawn_apart(tmp_path):
    solved(tmp_path / "runs", "adjoint")
    solved(tmp_path / "runs", "direct")
    out = tmp_path / "out"
    assert paper_study.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert (out / "solver-cifar10-node.png").is_file()
    table, check = (out / "table.md").read_text().split("### The paper's solver")
    assert table.count("| cifar10 | made-up | adam |") == 2  # a row a table
    assert "| cifar10 | adam | 0 | 4 | 0% |" in check
    assert len((out / "runs.csv").read_text().splitlines()) == 3
