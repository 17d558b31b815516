"""Runs of the paper's tasks beside its numbers: who is compared with whom, and what is said."""

import pytest

from scripts import paper_study
from scripts.jobs import experiments
from scripts.published import PUBLISHED, SOURCE
from tests.support.made_up_runs import made_up_run
from tests.support.planned import planned

PAPER = "snopt (rule=paper)"
LOSSES = {
    "adam": [2.0, 0.8, 0.6, 0.4, 0.3],
    "sgd": [2.0, 0.9, 0.5, 0.3, 0.2],
    "snopt": [2.0, 0.4, 0.15, 0.1, 0.1],
    "adamw": [2.0, 0.1, 0.1, 0.1, 0.1],
}


def cifar(root, optim, *, steps=400, seconds=0.1, settings=None, **more):
    """Losses at 0, 100, ... steps of 20 a made-up epoch, so that 400 steps are the paper's 20."""
    return made_up_run(
        root,
        task="cifar10",
        optim=optim,
        steps=steps,
        every=100,
        losses=LOSSES[optim],
        step_seconds=seconds,
        optim_settings=settings,
        steps_per_epoch=20,
        **more,
    )


def drawn(tmp_path, *roots, flags=()):
    """Rows of each table by optimizer, and the whole text."""
    out = tmp_path / "out"
    roots = roots or (tmp_path / "runs",)
    assert paper_study.main([*map(str, roots), "--out", str(out), *flags]) == 0
    assert {path.name for path in out.iterdir()} == {"comparison.png", "runs.csv", "table.md"}
    text = (out / "table.md").read_text()
    tables = []
    for part in text.split("### ")[1:4]:
        lines = [line for line in part.splitlines() if line.startswith("|")][2:]
        tables.append([[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines])
    return tables, text


@pytest.fixture
def runs(tmp_path):
    for optim in ("adam", "sgd"):
        cifar(tmp_path / "runs", optim)
    cifar(tmp_path / "runs", "snopt", seconds=0.12, settings={"rule": "paper"})
    return tmp_path / "runs"


def test_ratios_are_those_that_the_numbers_give(runs, tmp_path):
    (results, costs, times), text = drawn(tmp_path)
    by_name = {row[2]: row for row in results}
    # At a loss of 0.1 the made-up accuracy is 1 / 1.1.
    assert by_name[PAPER][3:9] == ["20", "0", "0.1", "0.16", "90.91%", "79.11%"]
    assert by_name["adam"][6:9] == ["0.47", "76.92%", "77.41%"]
    # In the 40 s of the others SNOpt makes 300 steps and a third.
    assert by_name[PAPER][9] == "90.91%"
    assert {row[2]: row[3:] for row in costs} == {
        PAPER: ["120", "197", "1.2", "1.16", "14/16"],
        "adam": ["100", "170", "1", "1", "14/16"],
        "sgd": ["100", "–", "1", "–", "14/16"],
    }
    # SGD ends at 0.2 after 400 steps and 40 s; SNOpt is below after 200 and 24 s.
    assert times == [
        ["cifar10", "made-up", f"{PAPER}, to sgd's 0.2", "1 of 1", "0.6", "0.5", "0.42"]
    ]
    assert "the curves are 1290 s long" in text
    assert SOURCE in text


def test_other_methods_get_no_published_number_and_set_no_target(runs, tmp_path):
    cifar(runs, "snopt", settings={"rule": "adam"}, config_hash="bbbbbbbb")
    cifar(runs, "adamw")
    (results, _, times), _ = drawn(tmp_path)
    published = {row[2]: row[8] for row in results}
    assert published[PAPER] == "79.11%"
    assert published["snopt (rule=adam)"] == published["adamw"] == ""
    assert {row[2] for row in times} == {
        "snopt (rule=adam), to sgd's 0.2",
        f"{PAPER}, to sgd's 0.2",
    }


def test_shorter_and_unfinished_runs_are_labelled(runs, tmp_path):
    cifar(runs, "adam", steps=300, seed=1)
    cifar(runs, "sgd", seed=1, outcome="interrupted")
    (results, _, _), _ = drawn(tmp_path)
    by_name = {row[2]: row for row in results}
    assert by_name["adam"][3:5] == ["15 of 20", "0, 1"]
    assert by_name["sgd"][4] == "0"
    (results, _, _), text = drawn(tmp_path, flags=["--partial", str(runs)])
    assert {row[2]: row[4] for row in results}["sgd"] == "0, 1"
    assert "cifar10: sgd was interrupted (seed 1)." in text


def test_machines_are_compared_apart(runs, tmp_path):
    gpu = {"device_name": "a graphics card"}
    for optim, seconds in (("adam", 0.01), ("snopt", 0.02)):
        cifar(tmp_path / "gpu", optim, seconds=seconds, environment=gpu)
    (_, costs, _), text = drawn(tmp_path, runs, tmp_path / "gpu")
    assert {(row[1], row[2]): row[5] for row in costs} == {
        ("made-up", PAPER): "1.2",
        ("made-up", "adam"): "1",
        ("made-up", "sgd"): "1",
        ("a graphics card", "snopt"): "2",
        ("a graphics card", "adam"): "1",
    }
    assert "on a graphics card" in text


def test_processor_seconds_where_a_run_is_limited_by_them(tmp_path):
    cifar(tmp_path / "runs", "adam", processors=0.25)
    cifar(tmp_path / "runs", "sgd")
    cifar(tmp_path / "runs", "snopt", processors=0.25, settings={"rule": "paper"})
    (_, costs, times), _ = drawn(tmp_path)
    # The clocks do not compare: SGD's wall seconds are set beside nothing.
    assert {row[2]: (row[3], row[5]) for row in costs} == {
        PAPER: ("25", "1"),
        "adam": ("25", "1"),
        "sgd": ("100", "–"),
    }
    # SGD has the lower loss, which SNOpt reaches after half as many steps.
    assert times[0][4:6] == ["–", "0.5"]


def test_an_integration_time_is_a_study_of_its_own(runs, tmp_path):
    traced = {("train", "horizon/T"): lambda step: 1.0 - step / 1000}
    cifar(runs, "adam", config_hash="cccccccc", extra=traced)
    out = tmp_path / "out"
    assert paper_study.main([str(runs), "--out", str(out)]) == 0
    assert (out / "horizon-cifar10-node.png").is_file()
    table, study = (out / "table.md").read_text().split("### Integration time")
    assert "cccccccc" not in table
    assert "T goes from 1.0 to about 0.45" in study
    (row,) = [line for line in study.splitlines() if line.startswith("| synthetic")]
    assert row.split(" | ")[6] == "0.6"


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(paper_study.ConfigError, match="is not a folder"):
        paper_study.main([str(tmp_path / "none"), "--out", str(tmp_path)])
    with pytest.raises(paper_study.ConfigError, match="no finished run of the paper's tasks"):
        paper_study.main([str(tmp_path), "--out", str(tmp_path)])


def test_published_numbers_name_their_source():
    assert "Table 2" in SOURCE
    for published in PUBLISHED.values():
        assert set(published.test) == {"adam", "sgd", "snopt"}
        assert published.seconds > 0
    assert PUBLISHED["mnist"].shown("snopt") == "98.99%"
    assert PUBLISHED["miniboone"].shown("snopt") == "12.50"
    assert PUBLISHED["miniboone"].shown("adamw") == ""


def test_epochs_are_those_of_the_experiments():
    for choice in experiments()["paper"]:
        task, optim = choice.rpartition("/")[2].rsplit("-", 1)
        if task in PUBLISHED and PUBLISHED[task].epochs:
            (job,) = planned(choice)
            assert job.config["train"]["max_epochs"] == PUBLISHED[task].epochs[optim], choice
