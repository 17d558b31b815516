"""The benchmark, from the files of its workloads to its page, on a toy workload."""

from functools import partial

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from scripts import benchmark
from scripts.ranking import entrants, workloads
from scripts.ranking.entrants import Entrant, make
from scripts.ranking.outcomes import Outcome
from scripts.ranking.workloads import Workload
from scripts.search import Found, Space, Trial, search
from tasks.common.checks import ConfigError
from tasks.engine import cli
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import build_task, load_splits
from tasks.engine.training.parallel import World
from tests.support.toy_workload import OF_MINE, decided, fixed


@pytest.mark.parametrize("name", workloads.names())
def test_every_workload_composes_and_measures_fifty_times(name, tmp_path) -> None:
    workload = Workload.read(name)
    settings = Entrant("default", workload, "adamw", tmp_path).settings({}, seed=3)
    assert settings.config["task"]["name"] == workload.task
    assert settings.train.clock == "cpu"
    assert settings.threads == 1
    assert workload.seconds == settings.train.max_seconds
    assert settings.train.max_seconds / settings.train.eval_every_seconds >= 49.9
    assert settings.train.eval_splits == ("valid", "test")
    valid = settings.train.eval_valid_samples
    assert valid is None or valid >= 2000


def test_a_target_is_no_part_of_a_run_s_identity(toy) -> None:
    entrant = Entrant("default", Workload.read("toy"), "adamw", toy)
    before = config_hash(entrant.configure({}))
    workloads.fix(entrant.workload, fixed())
    again = Entrant("default", Workload.read("toy"), "adamw", toy)
    assert again.workload.goal == 2.2
    assert config_hash(again.configure({})) == before


def test_a_target_is_written_once(toy) -> None:
    path = workloads.FOLDER / "toy.yaml"
    comments = path.read_text().count("#")
    workloads.fix(Workload.read("toy"), fixed())
    assert Workload.read("toy").target == fixed()
    assert path.read_text().count("#") == comments - 1
    assert yaml.safe_load(path.read_text())["workload"]["about"].startswith("A net")
    with pytest.raises(ConfigError, match="its target stays"):
        workloads.fix(Workload.read("toy"), fixed(0.1))


def test_a_file_that_is_no_workload_is_named(toy) -> None:
    (workloads.FOLDER / "bad.yaml").write_text("train: {max_steps: 3}\n")
    with pytest.raises(ConfigError, match=r"conf/target/bad\.yaml: is no workload"):
        workloads.read(["bad"])
    with pytest.raises(ConfigError, match="toi: no such choice"):
        workloads.read(["toi"])


def test_a_workload_without_all_of_its_first_order_optimizers_is_left_out(toy, capsys) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    flags = ["--track=default", f"--results={toy / 'results'}", f"--out={toy / 'out'}"]
    flags += ["--seeds=1", "--draw-only"]
    decided(Entrant("default", Workload.read("toy"), "sgd", toy / "results"), [0])
    assert benchmark.main([*flags, "--optims=sgd,adam"]) == 0  # adam may be the faster one
    assert "nothing to draw yet" in capsys.readouterr().out
    assert benchmark.main([*flags, "--optims=sgd,snopt"]) == 0
    assert "geometric mean" in capsys.readouterr().out


def test_it_draws_what_is_there_by_name_or_class(toy, mine, capsys) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    flags = ["--track=default", f"--results={toy / 'results'}", f"--out={toy / 'out'}"]
    flags += ["--optims=adamw,custom", *OF_MINE, "--seeds=2"]
    for optim, overrides in (("adamw", ()), ("custom", OF_MINE)):
        entrant = Entrant("default", Workload.read("toy"), optim, toy / "results", overrides)
        decided(entrant, [0, 1])
    assert benchmark.main(flags) == 0  # nothing is missing
    written = {path.name for path in (toy / "out").iterdir()}
    pictures = {"profile-default.png", "default-toy.png"}
    assert written - {"plotly.min.js"} == {"index.html", "summary.md", "ratios.csv", *pictures}
    page = (toy / "out" / "index.html").read_text()
    assert page.count("data:image/png") == 2
    rows = (toy / "out" / "ratios.csv").read_text().splitlines()
    assert {row.split(",")[2] for row in rows[1:]} == {"adamw", "signum"}
    assert "signum" in page
    summary = (toy / "out" / "summary.md").read_text()
    assert "geometric mean" in summary
    assert "toy: Test values before the last are of 50 samples, the last of all." in summary
    assert "default track, 1 workload" in capsys.readouterr().out


def test_tables_stay_where_the_runs_are_gone_until_the_target_changes(toy, capsys) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    results, out = toy / "results", toy / "out"
    flags = ["--track=default", f"--out={out}", "--optims=sgd,snopt", "--seeds=1"]
    decided(Entrant("default", Workload.read("toy"), "sgd", results), [0])
    assert benchmark.main([*flags, "--draw-only", f"--results={results}"]) == 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert benchmark.main([*flags, "--draw-only", "--results=elsewhere"]) == 0
    for name in ("ratios.csv", "summary.md", "default-toy.png"):
        assert (out / name).read_bytes() == written[name]
    assert (out / "index.html").read_text().count("data:image/png") == 2
    path = workloads.FOLDER / "toy.yaml"
    path.write_text(path.read_text().replace(f"loss: {fixed().loss}", "loss: 0.123"))
    assert Workload.read("toy").goal == 0.123
    capsys.readouterr()
    assert benchmark.main([*flags, "--draw-only", "--results=elsewhere"]) == 0
    assert "nothing to draw yet" in capsys.readouterr().out
    (out / "ratios.csv").write_text("track,workload\ndefault,toy\n")
    nowhere = toy / "nowhere"
    assert benchmark.main([*flags, f"--results={nowhere}"]) == cli.REFUSED
    assert "ratios.csv: is damaged" in capsys.readouterr().err
    assert not nowhere.exists()  # refused before anything ran


def test_an_own_optimizer_joins_the_field(toy, capsys) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    flags = ["--track=default", f"--results={toy / 'results'}", "--dry-run"]
    assert benchmark.main([*flags, "optim=custom", OWN[1]]) == 0
    said = capsys.readouterr().out
    assert "10 to run" in said
    assert "rprop" in said
    own = ["optim=custom", OWN[1], "solver.gradient=direct"]
    assert benchmark.main([*flags, "--optims=adamw,custom,adamw", *own]) == 0
    assert "2 to run" in capsys.readouterr().out


def test_what_is_still_missing_is_left_out(toy, capsys) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    flags = ["--track=default", f"--results={toy / 'results'}", f"--out={toy / 'out'}"]
    assert benchmark.main([*flags, "--draw-only"]) == 0
    assert "nothing to draw yet" in capsys.readouterr().out
    assert benchmark.main([*flags, "--dry-run", "--optims=adamw,sgd"]) == 0
    assert "2 to run" in capsys.readouterr().out
    assert not (toy / "results").exists()


OWN = ["--optims=custom", "optim._target_=torch.optim.Rprop"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--optims=adamx"], "adamx: no such choice"),
        (["--optims=custom"], "optim._target_=package.module.Class"),
        (["optim=custom"], "optim._target_=package.module.Class"),
        (["--optims=sgd", "optim=custom", OWN[1]], "--optims=sgd leaves it out"),
        (["optim._target_=torch.optim.Rprop"], "--optims adamw,custom"),
        (["--optims=lbfgs"], "lbfgs.yaml has no about.search"),
        (["optim=adam"], "optim=adam: overrides are for optim=custom"),
        (["--optims=sgd", "optim.lr=3"], "optim.lr=3: overrides are for optim=custom"),
        ([*OWN, "foo=2"], "foo: no such key"),
        (["--budget=0"], "above 0"),
        (["--budget=nan"], "above 0"),
        ([*OWN, "optim.lr=0.3"], "optim.lr: is chosen on each workload"),
        ([*OWN, "task.batch_size=8"], "task.batch_size: is the same for all optimizers"),
        ([*OWN, "target=none"], "target: is the same for all optimizers"),
        ([*OWN, "++schedule.name=constant"], "schedule.name: is the same for all optimizers"),
        ([*OWN, "optim.momentum=3"], "optim.momentum: no such key"),
        (["--optims=custom", "optim._target_=nowhere.Mine"], "nowhere.Mine: cannot be imported"),
        ([*OWN, "optim.about.search.lr.to=1"], "optim.about.search is read from"),
        (["--workloads=toi"], "toi: no such choice"),
    ],
)
def test_mistakes_are_explained(toy, capsys, flags, said) -> None:
    assert benchmark.main([*flags, "--dry-run"]) == cli.REFUSED
    assert said in " ".join(capsys.readouterr().err.split())


def test_other_data_than_a_workload_s_are_refused(toy) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    path = workloads.FOLDER / "toy.yaml"
    path.write_text(path.read_text() + "  train_samples: 60000\n")
    entrant = Entrant("default", Workload.read("toy"), "sgd", toy)
    with pytest.raises(ConfigError, match=r"60000 training samples of digits.* holds 1377"):
        make(entrant, range(1), print)


@pytest.mark.parametrize(
    "name",
    ["character_trajectories", "circle", "miniboone", "mnist", "plane_vibration", "walker2d"],
)
def test_workloads_have_the_data_that_their_files_say(real_data, name) -> None:
    content = yaml.safe_load((workloads.FOLDER / f"{name}.yaml").read_text())
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=[f"target={name}", "optim=sgd"]))
    settings = Settings.read({**config, "data": {"root": str(real_data)}})
    splits = load_splits(settings, build_task(settings), World(0, 1, torch.device("cpu")))
    assert len(splits.train[0]) == content["workload"]["train_samples"]


def test_targets_are_fixed_by_the_best_first_order_optimizer(
    toy, mine, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(benchmark, "FIRST_ORDER", ("sgd", "adamw"))
    monkeypatch.setattr(benchmark, "TARGET_SEEDS", 3)
    monkeypatch.setattr(benchmark, "run_all", in_process)
    monkeypatch.setattr(entrants, "search", partial(search, trials=2, widenings=0))
    flags = ["--track=tuned", "--optims=adamw,custom", *OF_MINE, "--seeds=1"]
    assert benchmark.main([*flags, f"--results={toy / 'results'}", f"--out={toy / 'out'}"]) == 0
    target = Workload.read("toy").target
    assert target is not None
    assert target.low <= target.loss <= target.high
    # Its settings are chosen again with the target, and may be others; the runs are there.
    last = (toy / "results" / "tuned" / "toy" / target.optim).rglob("*-s2")
    runs = [
        [Outcome.read(path.with_name(f"{path.name[:-1]}{s}")) for s in range(3)] for path in last
    ]
    medians = [sorted(outcome.best for outcome in three)[1] for three in runs]
    assert any(median <= target.loss <= 1.001 * median for median in medians)
    assert (toy / "out" / "tuned-toy.png").exists()
    assert "target" in capsys.readouterr().out
    kept = (toy / "results" / "tuned" / "toy" / "signum").rglob("config.yaml")
    assert {yaml.safe_load(path.read_text())["optim"]["beta"] for path in kept} == {0.9}
    assert not (toy / "results" / "tuned" / "toy" / "soap").exists()


def test_a_target_is_fixed_without_who_finds_no_settings(toy, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "FIRST_ORDER", ("sgd", "adamw"))
    monkeypatch.setattr(benchmark, "TARGET_SEEDS", 1)
    monkeypatch.setattr(benchmark, "run_all", in_process)

    def searched(configure, space, **more) -> Found:
        if space != Space.of("sgd"):
            return search(configure, space, **more, trials=1, widenings=0)
        return Found([Trial(changes) for changes in space.draw(2, seed=0)], [space])

    monkeypatch.setattr(entrants, "search", searched)
    flags = ["--track=tuned", "--optims=sgd,adamw", "--seeds=1"]
    flags += [f"--results={toy / 'results'}", f"--out={toy / 'out'}"]
    assert benchmark.main(flags) == 0
    assert Workload.read("toy").target.optim == "adamw"
    said = capsys.readouterr()
    assert "sgd: every trial on toy diverged before the whole budget" in said.err


def in_process(commands, jobs, begin, *, deadline):
    """The entrants' program, without processes of its own."""
    codes = []
    for index, (_, _, _, *arguments) in enumerate(commands):
        begin(index)
        codes.append(entrants.main(arguments))
    return codes
