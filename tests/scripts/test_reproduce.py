"""Job lists, skipping, resuming, and published numbers beside ours, on a made-up configuration."""

import itertools
import math

import pytest
import yaml

from scripts import jobs, reproduce
from tests.support.made_up_runs import made_up_run
from tests.support.planned import planned

BASE = {
    "defaults": ["_self_", {"experiment": "none"}],
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "task": {"name": "circle", "_target_": "made.Up", "batch_size": 128},
    "model": {"name": "node"},
    "optim": {"name": "adam", "_target_": "torch.optim.Adam"},
    "solver": {},
    "data": {"root": None},
    "results": {"root": "results"},
    "train": {"max_epochs": 10, "max_steps": None, "max_seconds": None},
    "schedule": {},
    "logger": {"name": "local"},
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    root = tmp_path / "conf"
    (root / "experiment/paper/flows").mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(BASE))
    (root / "experiment/none.yaml").write_text("{}")
    for optim in ("adam", "snopt"):
        text = f"# @package _global_\noptim: {{name: {optim}}}\n"
        (root / f"experiment/paper/flows/circle-{optim}.yaml").write_text(text)
    monkeypatch.setattr(jobs, "CONF", root)
    return root


def in_turn(run):
    """Stands for ``run_all``: one command after the other, in this process."""

    def run_all(commands, jobs, begin):
        codes = []
        for index, command in enumerate(commands):
            begin(index)
            codes.append(run(command))
        return codes

    return run_all


class Commands(list):
    """What was trained; runs are limited by processor seconds where these are a share of all."""

    processors = None


@pytest.fixture
def trained(monkeypatch):
    """Replaces training: made-up runs in the folders that the jobs ask for."""
    commands = Commands()

    def run(command):
        commands.append(command[2:])
        (job,) = jobs.plan([command[2].split("=")[1]], [int(command[3].split("=")[1])], None)
        root = next(c.split("=")[1] for c in command if c.startswith("results.root="))
        made_up_run(
            jobs.Path(root),
            task="circle",
            optim=job.config["optim"]["name"],
            seed=job.config["seed"],
            config_hash=job.folder.name.rpartition("-")[0],
            metric="nll",
            higher_is_better=False,
            processors=commands.processors,
        )
        return 0

    monkeypatch.setattr(reproduce, "run_all", in_turn(run))
    return commands


def command(tmp_path, *arguments):
    return reproduce.main(["paper/flows", "--results", str(tmp_path / "results"), *arguments])


def test_folders_are_experiments_and_stand_for_what_is_in_them(conf):
    found = jobs.experiments()
    assert set(found) == {"paper/flows", "paper", "all"}
    assert found["paper"] == ["paper/flows/circle-adam", "paper/flows/circle-snopt"]


def test_all_optimizers_of_a_seed_come_before_the_next_seed(conf):
    found = jobs.plan(jobs.experiments()["paper"], [0, 1], budget=30.0)
    assert [(j.config["seed"], j.config["optim"]["name"]) for j in found] == [
        (0, "adam"),
        (0, "snopt"),
        (1, "adam"),
        (1, "snopt"),
    ]
    assert {j.config["train"]["max_seconds"] for j in found} == {30}
    assert found[0].folder.parts[-4:-1] == ("circle", "node", "adam")


def test_runs_what_is_missing_skips_what_is_finished_and_draws(conf, trained, tmp_path, capsys):
    assert command(tmp_path, "--seeds", "0,1") == 0
    assert len(trained) == 4
    folder = tmp_path / "results/reproduced/paper-flows"
    assert {path.name for path in folder.iterdir()} - {"plotly.min.js"} == {
        "comparison.png",
        "report.html",
        "runs.csv",
        "summary.csv",
        "summary.md",
        "table.md",
    }
    text = (folder / "table.md").read_text()
    row = next(line for line in text.splitlines() if "| snopt |" in line)
    assert "| 0.86 |" in row
    assert "synthetic, made up by a test" in text
    assert "Liu et al. 2021, Table 2" in text
    capsys.readouterr()
    assert command(tmp_path, "--seeds", "0,1,2") == 0
    assert len(trained) == 6
    assert capsys.readouterr().out.count("finished before") == 4


def test_seconds_are_those_of_the_clock_of_the_runs(conf, trained, tmp_path):
    trained.processors = 0.25
    assert command(tmp_path, "--seeds", "0") == 0
    folder = tmp_path / "results/reproduced/paper-flows"
    costs = (folder / "table.md").read_text().partition("### Seconds of a training step")[2]
    assert "| adam | 25 |" in costs
    assert "Seconds are those on processors" in (folder / "report.html").read_text()


def test_dry_run_trains_nothing_and_estimates_from_earlier_runs(conf, trained, tmp_path, capsys):
    made_up_run(tmp_path / "results", task="circle", optim="adam", steps_per_epoch=50, wall=52.0)
    (conf / "experiment/paper/flows/other.yaml").write_text(
        "# @package _global_\ntask: {name: other}\n"
    )
    assert command(tmp_path, "--seeds", "0", "--dry-run") == 0
    assert trained == []
    lines = capsys.readouterr().out.splitlines()
    # 10 epochs of 50 steps at 0.1 s.
    assert any("circle-adam" in line and line.rstrip().endswith("50") for line in lines)
    # Without a run of its own, as the other optimizer's.
    assert any("circle-snopt" in line and line.rstrip().endswith("50") for line in lines)
    assert any("flows/other" in line and line.rstrip().endswith("unknown") for line in lines)
    assert lines[-2].startswith("3 runs: 2 with about 100 s")
    # 52 s of wall time for 40 s of training.
    assert lines[-1].startswith("wall time with --jobs 1: about 2.2 min")


def test_budget_bounds_the_estimate(conf, tmp_path):
    (job,) = jobs.plan(["paper/flows/circle-adam"], [0], budget=7.0)
    assert jobs.estimate(job, tmp_path) == 7.0


def test_costs_are_known_on_a_fresh_checkout(conf, tmp_path, monkeypatch, capsys):
    costs = tmp_path / "costs.csv"
    costs.write_text(
        "task,optim,step_seconds,batch_size,samples\n"
        "circle,adam,0.1,128,1280\ncircle,snopt,0.3,128,1280\nother,adam,9,128,1280\n"
    )
    monkeypatch.setattr(jobs, "COSTS", costs)
    for name, expected in (("adam", 10.0), ("snopt", 30.0)):
        (job,) = jobs.plan([f"paper/flows/circle-{name}"], [0], None, ["task.batch_size=128"])
        assert jobs.estimate(job, tmp_path) == pytest.approx(expected)  # ten epochs of ten steps
        (job,) = jobs.plan([f"paper/flows/circle-{name}"], [0], None, ["task.batch_size=64"])
        assert jobs.estimate(job, tmp_path) == pytest.approx(expected)
    assert command(tmp_path, "--dry-run", "--seeds", "0", "task.batch_size=128") == 0
    assert "order of magnitude" in " ".join(capsys.readouterr().out.split())


def test_costs_name_tasks_that_there_are():
    for job in itertools.chain.from_iterable(map(planned, jobs.experiments()["paper"])):
        gas = job.config["task"]["name"] == "gas"
        assert math.isnan(jobs.estimate(job, jobs.Path("nowhere"))) == gas


def test_interruption_ends_the_command_and_draws_nothing(conf, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reproduce, "run_all", lambda commands, *rest: [130] + [None] * (len(commands) - 1)
    )
    assert command(tmp_path) == 130
    assert not (tmp_path / "results").exists()


def test_failed_runs_are_named_and_the_others_drawn(conf, trained, tmp_path, monkeypatch, capsys):
    works = reproduce.run_all

    def half(commands, *rest):
        return [1 if "snopt" in c[2] else works([c], *rest)[0] for c in commands]

    monkeypatch.setattr(reproduce, "run_all", half)
    assert command(tmp_path, "--seeds", "0") == 1
    printed = capsys.readouterr().out
    assert "left out circle/node/snopt" in printed
    assert "| circle |" in printed


def test_a_single_file_is_an_experiment_too(conf, trained, tmp_path):
    arguments = ["paper/flows/circle-snopt", "--seeds", "0", "--results", str(tmp_path / "r")]
    assert reproduce.main(arguments) == 0
    assert len(trained) == 1
    assert (tmp_path / "r/reproduced/paper-flows-circle-snopt/table.md").is_file()


def test_unknown_experiments_and_keys_are_explained(conf, tmp_path, capsys):
    assert reproduce.main(["paper/pictures"]) == 2
    assert "paper/flows" in capsys.readouterr().err
    assert command(tmp_path, "train.max_epoch=3", "--dry-run") == 2
    assert "max_epoch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lrr=3"], "optim.lrr: no such key. Did you mean lr"),
        (["horizon=fedback"], "Did you mean feedback"),
        (["--seeds", "0,0"], "a seed is given twice"),
        (["--seeds", "0,x"], "--seeds=0,x: give whole numbers"),
        (["--seeds", ""], "--seeds=: give whole numbers"),
    ],
)
def test_mistakes_are_explained_as_those_of_run_py(arguments, message, capsys):
    assert reproduce.main(["paper/flows/circle-adam", "--dry-run", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_several_at_once_draw_no_bars(conf, trained, tmp_path):
    assert command(tmp_path, "--seeds", "0", "--jobs", "2") == 0
    assert all("logger.progress=plain" in overrides for overrides in trained)
    assert command(tmp_path, "--jobs", "0") == 2


def test_reference_is_every_optimizer_for_the_same_seconds():
    tasks = {}
    for job in jobs.plan(jobs.experiments()["reference"], [0, 1], None):
        settings = job.config
        tasks.setdefault(settings["task"]["name"], []).append(job)
        assert settings["train"]["max_epochs"] is None
        assert settings["threads"] == 1
    assert len(tasks) == 10
    for task, runs in tasks.items():
        # Gauss-Newton steps need a likelihood, and training sets that a batch says much about.
        without = task in ("circle", "miniboone", "mnist", "cifar10")
        rules = {None, "adam", "paper"} | (set() if without else {"gauss_newton"})
        assert len({job.folder for job in runs}) == len(runs) == (14 if without else 16)
        assert len({str(job.config["train"]) for job in runs}) == 1
        assert {j.config["optim"].get("rule") for j in runs} == rules
