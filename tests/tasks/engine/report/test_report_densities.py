"""Pictures of densities: drawn from a real run's checkpoint, and only where there is one."""

import math

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from tasks import densities
from tasks.engine import experiment
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tasks.engine.report import read_run, write_report
from tasks.engine.report.comparison import compare
from tasks.engine.report.summary import tabulate
from tasks.engine.report.task_picture import _trained, task_picture
from tasks.task import Trained

TINY = [
    "task=circle",
    "task.hidden=8",
    "task.batch_size=64",
    "solver.method=rk4",
    "solver.steps=4",
    "solver.gradient=direct",
    "train.max_steps=2",
    "train.eval_train_samples=64",
    "logger.progress=off",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        for optim in ("adam", "snopt"):
            overrides = [*TINY, f"optim={optim}", f"results.root={root}"]
            experiment.train(Settings.read(composing.plain(compose("config", overrides=overrides))))
    return root


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(densities, "_GRID", 60)
    monkeypatch.setattr(densities, "_SAMPLES", 500)


def run(results, optim="adam"):
    (folder,) = (results / "circle/node" / optim).iterdir()
    return read_run(folder)


def drawn(results) -> densities.Picture:
    (comparison,) = compare([run(results)])
    picture = densities.picture_of(_trained(comparison.series[0]))
    assert picture is not None
    return picture


def test_a_picture_is_a_density_and_draws_from_it(results) -> None:
    picture = drawn(results)
    sides = picture.high - picture.low
    # Nearly flat after two steps, a part of it lies outside of the square.
    mass = picture.density.sum() * sides.prod() / 60**2
    assert 0.4 < mass < 1.05
    inside = ((picture.samples > picture.low) & (picture.samples < picture.high)).all(axis=1)
    assert inside.mean() == pytest.approx(mass, abs=0.1)


def test_a_picture_has_the_number_of_the_tables(results) -> None:
    (comparison,) = compare([run(results)])
    trained = _trained(comparison.series[0])
    ended = run(results).curves["test", "nll"].final
    # Of an exact divergence or another draw of noise it would be another one.
    (row,) = tabulate(comparison).rows
    assert trained.score == ended == row.test_metric.median
    title = f"adam, seed 0\ntest nll {ended:.4g}"
    figure = densities.density_figure("two rings", [trained])
    assert title in [axes.get_title() for axes in figure.axes]
    assert Trained("adam", "red", 3, None, None).caption("nll") == "adam, seed 3"


def test_a_picture_is_solved_as_the_run_was_judged(tmp_path) -> None:
    judged = ["optim=adam", "solver.evaluation={rtol:1e-7}", f"results.root={tmp_path}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=[*TINY, *judged]))
    experiment.train(Settings.read(config))
    (comparison,) = compare([run(tmp_path)])
    solver = _trained(comparison.series[0]).model.blocks[0].solver
    assert (solver.method, solver.rtol, solver.atol, solver.steps) == ("dopri5", 1e-7, 1e-6, None)


def test_the_grid_is_not_transposed(results) -> None:
    picture = drawn(results)
    axes = [np.linspace(picture.low[i], picture.high[i], 60) for i in range(2)]
    mean = [
        np.average(axes[0], weights=picture.density.sum(axis=0)),
        np.average(axes[1], weights=picture.density.sum(axis=1)),
    ]
    inside = ((picture.samples > picture.low) & (picture.samples < picture.high)).all(axis=1)
    error = 3 * math.hypot(*picture.samples[inside].std(axis=0)) / math.sqrt(inside.sum())
    assert picture.samples[inside].mean(axis=0) == pytest.approx(mean, abs=error)


def test_the_report_has_the_picture_and_its_file(results, tmp_path) -> None:
    report = write_report(results, tmp_path)
    assert tmp_path / "density-circle-node.png" in report.files
    assert (tmp_path / "density-circle-node.png").read_bytes().startswith(b"\x89PNG")
    assert "Densities and samples" in (tmp_path / "report.html").read_text()


def test_nothing_is_drawn_without_a_checkpoint_or_for_another_network(results, tmp_path) -> None:
    one, other = run(results), run(results, "snopt")
    (comparison,) = compare([one, other])
    kept = (one.path / "checkpoint.pt").read_bytes()
    other_kept = (other.path / "checkpoint.pt").read_bytes()
    try:
        (one.path / "checkpoint.pt").unlink()
        (other.path / "checkpoint.pt").write_bytes(b"no checkpoint")
        assert task_picture(comparison) is None
        (other.path / "checkpoint.pt").write_bytes(other_kept)
        assert task_picture(comparison) is not None
    finally:
        (one.path / "checkpoint.pt").write_bytes(kept)
        (other.path / "checkpoint.pt").write_bytes(other_kept)


def test_a_checkerboard_is_drawn_too(tmp_path) -> None:
    tiny = ["task=checkerboard", "optim=adam", *TINY[1:], f"results.root={tmp_path}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=tiny))
    experiment.train(Settings.read(config))
    (folder,) = (tmp_path / "checkerboard/node/adam").iterdir()
    (comparison,) = compare([read_run(folder)])
    assert task_picture(comparison) is not None
    picture = densities.picture_of(_trained(comparison.series[0]))
    assert picture is not None
    assert picture.density.shape == (60, 60)
    filled = np.floor(picture.test / 2).astype(int).sum(axis=1) % 2
    assert len(set(filled)) == 1  # squares of one colour hold all of the data
