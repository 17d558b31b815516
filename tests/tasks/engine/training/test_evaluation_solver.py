"""A solver for evaluations alone: what it measures, and how far off the training solver is."""

import logging

import pytest
import torch

from tasks.common.checks import ConfigError
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import build_task
from tasks.engine.report import read_run
from tasks.engine.report.reload import rebuild
from tasks.engine.training.batches import evenly_spaced
from tests.support import fake

FLOW = {
    "_target_": "tasks.flows.DensityEstimation",
    "name": "circle",
    "dataset": "circle",
    "hidden": 8,
    "layers": 2,
    "activation": "tanh",
    "batch_size": 256,
    "train_fraction": 0.05,
}
COARSE = {"method": "euler", "steps": 2}
PARTS = {"eval_valid_samples": 200, "eval_test_samples": 50, "eval_train_samples": 100}


def run(root, evaluation, *, lr=0.1, **changes):
    changes = {
        "task": FLOW,
        "dtype": "float64",
        "solver": {**COARSE, "evaluation": evaluation},
        "optim": {"lr": lr},
        "train": {"max_steps": 6, "eval_splits": ["valid", "test"], **PARTS},
        **changes,
    }
    return fake.train(root, **changes), fake.folder(root, **changes)


def loss_by(folder, split, solver):
    """The mean loss over a part of the data by a model that is built with that solver."""
    rebuilt = rebuild(read_run(folder), solver={"evaluation": None, **solver})
    rebuilt.model.eval()
    data = rebuilt.splits.test if split == "test" else evenly_spaced(rebuilt.splits.valid, 200)
    with torch.no_grad():
        return -float(rebuilt.forward(data).mean())


def test_evaluations_are_by_their_own_solver_and_the_gap_is_logged(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        record, folder = run(tmp_path, {"rtol": 1e-8, "atol": 1e-8})
    tight = {"method": "dopri5", "steps": None, "rtol": 1e-8, "atol": 1e-8}
    rows = [row for row in fake.rows(folder) if row["metric"] == "solver_gap"]
    assert {(row["split"], row["step"]) for row in rows} == {("valid", 6), ("test", 6)}
    for row in rows:
        exact, own = (loss_by(folder, row["split"], by) for by in (tight, COARSE))
        found = record["final"][row["split"]]
        assert found["loss"] == pytest.approx(exact, abs=1e-7)
        assert row["value"] == found["solver_gap"] == pytest.approx(abs(exact - own), abs=1e-7)
        assert row["value"] > 0.05
    assert "training solves too coarsely" in caplog.text


def test_a_small_gap_goes_without_a_warning(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        record, _ = run(tmp_path, {}, solver={"method": "dopri5", "rtol": 1e-5, "evaluation": {}})
    assert record["final"]["test"]["solver_gap"] < 1e-2
    assert "too coarsely" not in caplog.text


def test_a_run_that_reaches_its_target_has_its_gap_measured(tmp_path, caplog) -> None:
    train = {"max_steps": 6, "eval_every_steps": 2, "target": 1e3, "eval_at_start": False}
    with caplog.at_level(logging.WARNING):
        record, folder = run(tmp_path, {}, train=train)
    assert (record["outcome"], record["steps"]) == ("target_reached", 2)
    rows = [row for row in fake.rows(folder) if row["metric"] == "solver_gap"]
    assert {(row["split"], row["step"]) for row in rows} == {(s, 2) for s in record["final"]}
    assert record["final"]["test"]["solver_gap"] > 0.05
    assert "training solves too coarsely" in caplog.text


def test_training_does_not_see_the_evaluation_solver(tmp_path) -> None:
    own, one = run(tmp_path / "own", {})
    plain, other = run(tmp_path / "plain", None)
    losses = [
        [row for row in fake.rows(path) if row["metric"] == "batch_loss"] for path in (one, other)
    ]
    assert losses[0] == losses[1]  # counts of evaluations too
    assert own["nfe_forward"] == plain["nfe_forward"]
    assert "solver_gap" not in plain["final"]["test"]


def test_no_evaluation_solver_leaves_a_runs_identity_as_it_was(tmp_path) -> None:
    before = fake.config(tmp_path)
    assert config_hash(fake.config(tmp_path, solver={"evaluation": None})) == config_hash(before)
    assert config_hash(fake.config(tmp_path, solver={"evaluation": {}})) != config_hash(before)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ("dopri5", r"solver\.evaluation='dopri5': expected"),
        ({"gradient": "direct"}, r"solver\.evaluation\.gradient: no such key"),
        ({"rtol": -1.0}, r"solver\.evaluation\.rtol=-1\.0: must be at least 0"),
        ({"options": {"steps": 3}}, "is a key of the solver"),
        ({"method": "dopri"}, r"solver\.evaluation.*dopri"),
    ],
)
def test_mistakes_are_explained(tmp_path, evaluation, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task(Settings.read(fake.config(tmp_path, solver={"evaluation": evaluation})))
