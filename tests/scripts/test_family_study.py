"""Comparisons of families: sweeps, searched learning rates, counts, tables and pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts import family_study, point_cloud
from scripts.family_study import write_study
from scripts.jobs import TRIAL_SEED, chosen, experiments, plan
from tasks.engine import experiment
from tasks.engine.config.settings import Settings
from tasks.engine.records.runs import Run, read_runs
from tasks.engine.report.reload import evaluations, rebuild
from tasks.models.families import FAMILIES
from tasks.models.family_nets import PointNet
from tests.support.made_up_runs import made_up_run

QUICK = ["train.max_epochs=2", "solver.rtol=1e-3", "solver.atol=1e-3", "logger.progress=off"]


# --- sweeps and searched rates --------------------------------------------------------------------


def test_one_file_stands_for_every_family() -> None:
    planned = plan(experiments()["families/point_cloud"], [3], None)
    assert [job.config["model"]["name"] for job in planned] == list(FAMILIES)
    assert len({job.folder for job in planned}) == len(FAMILIES)
    assert not any(job.trial for job in planned)
    given = plan(experiments()["families/point_cloud"], [3, 4], None, ["model=sonode"])
    assert [job.config["seed"] for job in given] == [3, 4]
    assert given[0].folder == planned[2].folder


@pytest.mark.parametrize("name", [n for n in experiments() if n.startswith("families/")])
def test_every_family_experiment_composes(name: str) -> None:
    extra = ["model=adamnode", "optim.lr=0.01"]
    planned = plan(experiments()[name], [0], None, extra)
    assert {job.config["model"]["name"] for job in planned} == {"adamnode"}
    assert len(planned) >= len(experiments()[name])


def test_the_best_rate_of_each_pair_goes_on_to_the_reported_seeds(tmp_path: Path) -> None:
    choices = ["families/optimizers/digits-adam"]
    trials = plan(choices, [0, 1], None, [f"results.root={tmp_path}"])
    assert len(trials) == 4 * len(FAMILIES)  # seeds 0 and 1 wait for the choice
    assert all(job.trial and job.config["seed"] == TRIAL_SEED for job in trials)
    losses = {"node": (0.5, 0.2, 0.3, 0.4), "anode": (math.nan, 0.9, 0.1, 0.2)}
    for name, values in losses.items():
        own = [job for job in trials if job.config["model"]["name"] == name]
        for job, loss in zip(own, values, strict=True):
            job.folder.mkdir(parents=True)
            names = {part: job.config[part]["name"] for part in ("task", "model", "optim")}
            identity = {**names, "seed": TRIAL_SEED, "config_hash": job.folder.name[:8]}
            record = {**identity, "outcome": "completed", "final": {"train": {"loss": loss}}}
            (job.folder / "run.json").write_text(json.dumps(record))
    # What was measured before a run diverged or broke off is no result.
    for job, loss, outcome in zip(own, (0.01, 0.02), ("diverged", "error"), strict=False):
        record = json.loads((job.folder / "run.json").read_text())
        record |= {"outcome": outcome, "final": {"train": {"loss": loss}}}
        (job.folder / "run.json").write_text(json.dumps(record))
    found = chosen(trials, [0, 1])
    assert [
        (job.config["seed"], job.config["model"]["name"], job.config["optim"]["lr"])
        for job in found
    ] == [(0, "node", 0.004), (0, "anode", 0.016), (1, "node", 0.004), (1, "anode", 0.016)]
    assert not any(job.trial for job in found)


# --- the point cloud ------------------------------------------------------------------------------


def test_intervals_are_wilsons() -> None:
    # 76 of 100, from the closed form worked out by hand.
    assert point_cloud.interval(76, 100) == pytest.approx((0.6677, 0.8331), abs=1e-4)
    assert point_cloud.interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert point_cloud.interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@pytest.mark.parametrize("name", ["anode", "ghbnode", "adamnode"])
def test_networks_trained_together_are_those_trained_alone(name: str, monkeypatch) -> None:
    monkeypatch.setattr(point_cloud, "STEPS", 4)
    points, targets = point_cloud.clouds([5, 6])
    together = point_cloud.train(name, points, targets, [0, 1], steps=8)
    solver = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10, "gradient": "direct"}
    for run in (0, 1):
        torch.manual_seed(run)
        net = PointNet({"name": name}, solver).double()
        optimizer = torch.optim.Adam(net.parameters(), point_cloud.RATE)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(points[run]), targets[run]).backward()
            optimizer.step()
        alone = nn.functional.mse_loss(net(points[run]), targets[run])
        torch.testing.assert_close(together[run], alone, rtol=1e-5, atol=1e-7)


# --- models again, tables and pictures ------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("results")
    for name in ("node", "hbnode"):
        extra = [*QUICK, f"results.root={root}", f"model={name}"]
        (job,) = plan(["families/point_cloud/models"], [0], None, extra)
        experiment.train(Settings.read(job.config))
    return read_runs(root)[0]


@torch.no_grad()
def test_a_rebuilt_model_measures_what_its_run_measured(cloud: list[Run]) -> None:
    for run in cloud:
        losses = []
        for trained in (False, True):
            made = rebuild(run, trained=trained)
            outputs = made.forward(made.splits.train)
            losses.append(float(made.task.loss(outputs, made.splits.train)))
        measured = run.curves["train", "loss"].values
        assert losses == pytest.approx([measured[0], measured[-1]], rel=1e-6)
        assert losses[0] != pytest.approx(losses[1])


def test_evaluations_are_those_of_dopri5(cloud: list[Run]) -> None:
    loose, tight = (evaluations(cloud[0], tolerance, 50) for tolerance in (1e-2, 1e-8))
    for forward, backward in (loose, tight):
        assert forward % 6 == 2
        assert backward % 6 == 2
    assert tight[0] > loose[0]
    assert tight[1] > loose[1]


def test_a_study_is_tabulated_and_drawn(cloud: list[Run], tmp_path: Path, monkeypatch) -> None:
    text = write_study(cloud, tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| node", "| hb"))]
    assert [row[0] for row in rows] == ["| node", "| hbnode"]
    assert rows[0][1] == "525"  # the published number of parameters
    assert "76 of 100" in " ".join(rows[1])
    assert "synthetic" in text
    assert (tmp_path / "point_cloud.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "evaluations.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    assert len(measured) == 2 * 3
    # What was measured once is not measured again.
    monkeypatch.setattr(family_study, "evaluations", lambda *_: pytest.fail("measured again"))
    assert write_study(cloud, tmp_path) == text
    # But for a run that went on since then.
    monkeypatch.setattr(family_study, "evaluations", lambda *_: (7, 9))
    further = dataclasses.replace(cloud[0], steps=cloud[0].steps + 1)
    assert write_study([further, cloud[1]], tmp_path).count("7/9") == 3


def test_a_run_that_diverged_is_told_and_not_drawn(
    cloud: list[Run], tmp_path: Path, monkeypatch
) -> None:
    drawn: list[Run] = []
    figure = family_study._FIGURES["nested_spheres"][1]
    monkeypatch.setitem(
        family_study._FIGURES,
        "nested_spheres",
        ("point_cloud", lambda runs: drawn.extend(runs) or figure(runs)),
    )
    failed = dataclasses.replace(cloud[0], seed=-1, outcome="diverged")
    text = write_study([failed, *cloud], tmp_path)
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {failed.model} ")]
    assert "diverged" in row
    assert drawn == cloud


def test_families_that_diverged_at_once_are_tabulated(cloud: list[Run], tmp_path: Path) -> None:
    failed = [dataclasses.replace(run, outcome="diverged", steps=0, seconds=0.0) for run in cloud]
    text = write_study(failed, tmp_path)
    assert text.count("| diverged |") == 2
    assert not (tmp_path / "point_cloud.png").exists()
    others = [dataclasses.replace(run, optim="adamw") for run in failed]
    assert write_study([*failed, *others], tmp_path).count("diverged") == 2 * 2 * 2


def test_any_optimizers_are_tabulated_with_their_steps(cloud: list[Run], tmp_path: Path) -> None:
    further = [dataclasses.replace(run, optim="soap", steps=9) for run in cloud]
    text = write_study([*cloud, *further], tmp_path)
    assert "| family | adam: train loss |" in text
    assert "| soap: train loss |" in text
    assert f"{cloud[0].steps} / 9 steps" in text


def test_runs_of_one_family_are_no_study(cloud: list[Run], tmp_path: Path) -> None:
    assert write_study(cloud[:1], tmp_path) == ""
    assert not any(tmp_path.iterdir())


def test_folders_of_runs_are_drawn_with_what_is_missing_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(family_study, "evaluations", lambda run, *_: (14, len(run.model)))
    losses = [9.0, 1.0, 0.25]
    for model, steps, outcome in (("node", 200, "budget"), ("hbnode", 100, "interrupted")):
        epoch = 100 if model == "node" else 50  # 50: nothing is measured after one epoch
        made_up_run(
            tmp_path / "runs",
            task="mnist",
            model=model,
            outcome=outcome,
            steps=steps,
            every=100,
            losses=losses,
            steps_per_epoch=epoch,
            config_hash=f"{len(model):08x}",
        )
    given = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(family_study.ConfigError, match="several families"):
        family_study.main(given)
    assert family_study.main([*given, "--partial"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("evaluations.csv", "runs.csv", "table.md", "training.png")
    }
    text = (tmp_path / "out" / "table.md").read_text()
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["node", "hbnode"]
    # The made-up accuracy at a loss of x is 1 / (1 + x), and a step takes 0.1 s.
    assert [row[3:6] for row in rows] == [["2", "80.0%", "50.0%"], ["2", "50.0%", ""]]
    assert [row[7:10] for row in rows] == [["14/4"] * 3, ["14/6"] * 3]
    assert [row[10:13] for row in rows] == [
        ["10", "96.94 ± 0.58%", "91.66 ± 0.57%"],
        ["5", "97.94 ± 0.13%", "94.80 ± 1.54%"],
    ]
    assert "on made-up, which" in text


def made_up_families(root: Path, settings: dict[str, float], **more) -> list[Run]:
    """One run of two families for each hash, with settings of the task or the optimizer."""
    for config_hash, batch in settings.items():
        for model in ("node", "hbnode"):
            digest = f"{config_hash}{len(model):06d}"
            made_up_run(root, model=model, config_hash=digest, **more)
            config = root / "digits" / model / "adam" / f"{digest}-s0" / "config.yaml"
            config.write_text(config.read_text().replace("name: digits", f"batch_size: {batch}"))
    return read_runs(root)[0]


def test_runs_of_two_studies_of_a_task_never_share_a_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(family_study, "evaluations", lambda *_: (14, 20))
    monkeypatch.setitem(family_study.STUDIES, "digits", family_study.STUDIES["mnist"])
    text = write_study(made_up_families(tmp_path, {"aa": 16, "bb": 64}), tmp_path / "out")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| node")]
    assert [row[2] for row in rows] == ["1", "1"]  # seeds


def test_several_settings_of_a_family_are_no_seeds_of_one(tmp_path: Path) -> None:
    runs = made_up_families(tmp_path, {"aa": 16})
    other = dataclasses.replace(
        runs[0], config_hash="cc", config={**runs[0].config, "optim": {"name": "adam", "lr": 0.1}}
    )
    with pytest.raises(family_study.ConfigError, match="node with adam: has runs of 2 settings"):
        write_study([*runs, other], tmp_path / "out")
