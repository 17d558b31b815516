"""Regression on a table: the data are those that scikit-learn ships, and no ODE is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from tasks.common.checks import ConfigError
from tasks.engine import experiment
from tasks.engine.report import read_run, write_report
from tests.support.composed import read
from tests.support.task_cases import make
from tests.tasks.engine.config.test_config import ONE_STEP


def test_every_patient_is_in_one_split() -> None:
    task = make("diabetes")
    splits = task.load(Path(), 0, torch.device("cpu"), torch.float64)
    parts = (splits.train, splits.valid, splits.test)
    assert [len(part[0]) for part in parts] == [309, 66, 67]
    features, targets = splits.train
    for tensor in (features, targets):
        torch.testing.assert_close(tensor.mean(0), 0 * tensor[0])
        torch.testing.assert_close(tensor.std(0, correction=0), 1 + 0 * tensor[0])
    x, y = load_diabetes(return_X_y=True, scaled=False)
    # Least squares does not care for shifts, scales and order.
    found = np.concatenate([torch.cat([*part], dim=1).numpy() for part in parts])
    theirs = np.concatenate([x, y[:, None]], axis=1)
    for table in (found, theirs):
        table -= table.mean(0)
        table /= table.std(0)
    assert found.T @ found == pytest.approx(theirs.T @ theirs)
    # The mean absolute error comes back in the score's own unit.
    measured = task.measure(torch.zeros_like(splits.test[1]), splits.test)
    assert sorted(measured) == ["loss", "mae"]
    scores = torch.cat([part[1] for part in parts]).numpy()[:, 0]
    unit = (y.max() - y.min()) / (scores.max() - scores.min())
    assert measured["mae"].numpy() == pytest.approx(unit * splits.test[1].abs().numpy()[:, 0])


OPTIMIZERS = (
    *("adam", "snopt", "snopt_paper", "snopt_gauss_newton", "gauss_newton", "lbfgs", "adam_lbfgs"),
)


def test_it_runs_with_every_kind_of_optimizer_and_is_reported(tmp_path: Path) -> None:
    common = ["task=diabetes", "dtype=float64", *ONE_STEP, "train.max_steps=20"]
    for optim in OPTIMIZERS:
        root = tmp_path / optim
        ended = experiment.train(read(*common, f"optim={optim}", f"results.root={root}"))
        found = ended["outcome"], ended["model"], ended["nfe_forward"]
        assert found == ("completed", "mlp", 0), optim
        (folder,) = (root / "diabetes" / "mlp").glob("*/*")
        losses = [float(value) for value in read_run(folder).curves["valid", "loss"].values]
        assert losses[-1] < 1.1, optim  # that of the mean
    report = write_report(tmp_path)
    assert tmp_path / "report.html" in report.files
    assert len(report.tables[0].rows) == len(OPTIMIZERS)


def test_a_network_without_an_ode_has_no_horizon() -> None:
    with pytest.raises(ConfigError, match="horizon"):
        experiment.build_task(read("task=diabetes", "horizon=feedback"))
