"""The search for settings: equal for every optimizer, blind to the test split, repeatable."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from scripts import search, tune
from tasks.common.checks import ConfigError
from tasks.engine.training.dataset_cache import DatasetCache
from tests.support import fake

#: Not searched, where the fake configuration has no such keys.
FEW = {"optim.field_lr": "null", "optim.weight_decay": "0"}
LIMITS = {"train": {"max_steps": 5, "eval_every_epochs": None, "eval_at_start": False}}


def configure(root, seen: list[dict[str, Any]] | None = None, **base: Any) -> search.Configure:
    def configured(changes: Mapping[str, Any]) -> dict[str, Any]:
        if seen is not None:
            seen.append(dict(changes))
        config = fake.config(root, **{**LIMITS, **base})
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = config[parents[0]] if parents else config
            node[last] = value
        return config

    return configured


def losses_of(monkeypatch, loss: Callable[[Mapping[str, Any], search.Rung], float]) -> list[Any]:
    """Trials are not run, but have the losses given; returns what is asked for."""
    asked: list[Any] = []

    def run(configure, changes, rung, *rest) -> search.Result:
        asked.append((changes, rung))
        return search.Result(rung, loss(changes, rung), 7)

    monkeypatch.setattr(search, "run", run)
    return asked


@pytest.mark.parametrize(
    ("trials", "runs", "cost"), [(16, (16, 4, 3), 6.0), (8, (8, 2, 1), 2.5), (1, (1, 1, 1), 1.375)]
)
def test_halving_costs_few_full_runs(trials, runs, cost) -> None:
    found = search.rungs(trials, 80.0)
    assert tuple(rung.runs for rung in found) == runs
    assert [(rung.seconds, rung.seed) for rung in found] == [(10, 100), (20, 101), (80, 100)]
    assert sum(rung.runs * rung.seconds for rung in found) == 80 * cost


def test_the_best_of_each_rung_go_on(tmp_path, monkeypatch) -> None:
    # What is best in short runs, where low rates look good, is not what is best at full length.
    def loss(changes, rung) -> float:
        return -changes["optim.lr"] if rung.seconds == 8 else changes["optim.lr"]

    asked = losses_of(monkeypatch, loss)
    found = search.search(
        configure(tmp_path), search.Space.of("adam"), seconds=8.0, widenings=0
    ).trials
    rates = sorted(changes["optim.lr"] for changes, rung in asked if rung.seconds == 1)
    by_length = {s: [c["optim.lr"] for c, r in asked if r.seconds == s] for s in (1, 2, 8)}
    assert len(rates) == 16
    assert sorted(by_length[2]) == rates[:4]
    assert sorted(by_length[8]) == rates[:3]
    assert [trial.changes["optim.lr"] for trial in found[:4]] == [*rates[2::-1], rates[3]]
    assert [len(trial.results) for trial in found] == [3] * 3 + [2] + [1] * 12


def test_settings_that_fail_in_longer_runs_make_room(tmp_path, monkeypatch) -> None:
    ranked = sorted(c["optim.lr"] for c in search.Space.of("adam").draw(16, 0))

    def loss(changes, rung) -> float:
        failed = rung.seconds == 2 and changes["optim.lr"] in ranked[:2]
        return math.inf if failed else changes["optim.lr"]

    losses_of(monkeypatch, loss)
    found = search.search(
        configure(tmp_path), search.Space.of("adam"), seconds=8.0, widenings=0
    ).trials
    assert [trial.changes["optim.lr"] for trial in found[:3]] == ranked[2:5]
    assert [trial.changes["optim.lr"] for trial in found[-2:]] == ranked[:2]


def test_what_is_chosen_got_through_a_whole_run(tmp_path, monkeypatch) -> None:
    ranked = sorted(c["optim.lr"] for c in search.Space.of("adam").draw(16, 0))
    survivors = ranked[5:7]  # beyond the four that the second rung takes

    def loss(changes, rung) -> float:
        failed = rung.seconds == 8 and changes["optim.lr"] not in survivors
        return math.inf if failed else changes["optim.lr"]

    asked = losses_of(monkeypatch, loss)
    space, more = search.Space.of("adam"), {"seconds": 8.0, "widenings": 0}
    found = search.search(configure(tmp_path), space, **more).trials
    assert [trial.changes["optim.lr"] for trial in found if trial.lasted(8.0)] == survivors
    assert found[0].changes["optim.lr"] == survivors[0]
    assert len([rung for _, rung in asked if rung.seconds == 2]) == 4
    survivors = []
    none = search.search(configure(tmp_path), space, **more)
    assert not none.trials[0].lasted(8.0)


def test_lower_rates_are_searched_where_all_diverge(tmp_path, monkeypatch) -> None:
    space = search.Space.of("adam")
    losses_of(monkeypatch, lambda c, rung: 1.0 if c["optim.lr"] < space.lr.low else math.inf)
    begun: list[search.Space] = []
    found = search.search(configure(tmp_path), space, seconds=8.0, begin=begun.append)
    assert begun == found.spaces
    assert [(one.lr.low, one.lr.high) for one in begun] == [(1e-3, 0.1), (1e-4, 0.1)]
    assert begun[1].own == space.own
    assert found.trials[0].lasted(8.0)
    losses_of(monkeypatch, lambda changes, rung: math.inf)
    none = search.search(configure(tmp_path), space, seconds=8.0)
    assert len(none.spaces) == 3
    assert not none.trials[0].lasted(8.0)
    closed = search.Space(search.LogUniform(1e-3, 0.1, open=False))
    assert search.search(configure(tmp_path), closed, seconds=8.0).spaces == [closed]


def test_nothing_is_written_where_every_whole_run_failed(tmp_path, monkeypatch, capsys) -> None:
    short = search.Result(search.Rung(2, 1.0, 100), 0.5, 9)
    lost = search.Found([search.Trial({"optim.lr": 0.5}, (short,))], [search.Space.of("adam")])
    monkeypatch.setattr(tune, "search", lambda *rest, **more: lost)
    monkeypatch.setattr(tune, "write_file", lambda *rest: pytest.fail("it was written"))
    given = ["task=digits", "optim=adam", "--seconds=8", "--results", str(tmp_path)]
    assert tune.main(given) == 1
    assert "every run of 8 s diverged; nothing is written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("best", "bounds"),
    [
        ((1e-5, 0.02), [(1e-3, 0.1), (1e-4, 0.1), (1e-5, 0.1)]),  # still lower: twice at most
        ((0.01, 0.02), [(1e-3, 0.1)]),
        ((0.3, 0.02), [(1e-3, 0.1), (1e-3, 1.0)]),
        ((0.01, 0.7), [(1e-3, 0.1), (1e-3, 0.1)]),  # of the damping alone, which is wider then
    ],
)
def test_a_search_whose_best_lies_at_an_edge_is_widened(best, bounds, monkeypatch) -> None:
    def loss(changes, rung) -> float:
        found = changes["optim.lr"], changes["optim.damping"]
        return max(abs(math.log(a / b)) for a, b in zip(found, best, strict=True))

    asked = losses_of(monkeypatch, loss)
    space = search.Space(
        search.LogUniform(1e-3, 0.1), {"optim.damping": search.LogUniform(1e-3, 0.4)}
    )
    found = search.search(configure("none"), space, seconds=8.0, trials=64)
    assert [(space.lr.low, space.lr.high) for space in found.spaces] == bounds
    assert len(found.trials) == 64 * len(bounds)
    assert found.trials[0].score == min(loss(c, r) for c, r in asked if r.seconds == 8)
    alone = search.search(configure("none"), space, seconds=8.0, trials=64, widenings=0)
    assert alone.spaces == [space]


def test_score_is_the_lowest_loss_of_the_chosen_split(tmp_path) -> None:
    limits = {**LIMITS["train"], "max_steps": 30}
    for split, rate in (("train", 0.01), ("valid", 0.3)):
        base = {"train": {**limits, "eval_every_steps": 1}, "optim": {"lr": rate}}
        rung = search.Rung(1, 60.0, 100)
        result = search.run(configure(tmp_path / split, **base), {}, rung, split)
        (path,) = (tmp_path / split).rglob("metrics.jsonl")
        rows = [r for r in fake.rows(path.parent) if (r["split"], r["metric"]) == (split, "loss")]
        assert result == search.Result(rung, min(row["value"] for row in rows), 30)
        assert len(rows) == 30
    assert result.loss < rows[-1]["value"]  # a rate so high goes up again


def test_trials_take_equal_seconds_and_are_not_made_again(tmp_path) -> None:
    seen: list[dict[str, Any]] = []
    given = {"seconds": 0.2, "trials": 2, "widenings": 0}
    base = {"train": {"max_steps": None, "max_epochs": None, "eval_every_epochs": None}}
    first = search.search(configure(tmp_path, seen, **base), search.Space.of("adam", FEW), **given)
    assert [c["train.max_seconds"] for c in seen] == [0.025] * 2 + [0.05] * 2 + [0.2]
    assert [c["seed"] for c in seen] == [100, 100, 101, 101, 100]
    assert [c["train.max_seconds"] / c["train.eval_every_seconds"] for c in seen] == [12.0] * 5
    assert all(math.isfinite(trial.score) for trial in first.trials)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(written) == 5
    for path in written:
        run = json.loads(path.read_text())
        assert run["outcome"] == "budget"
    again = search.search(configure(tmp_path, **base), search.Space.of("adam", FEW), **given)
    assert again == first
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}


def test_a_run_that_diverged_never_wins(tmp_path) -> None:
    task = {"_target_": "tests.support.fake.Rings", "name": "rings", "explode_at": 3}
    result = search.run(configure(tmp_path, task=task), {}, search.Rung(1, 60.0, 100), "train")
    assert result.loss == math.inf


def test_data_are_loaded_once_a_seed(tmp_path, monkeypatch) -> None:
    loads = []
    load = fake.Rings.load
    monkeypatch.setattr(fake.Rings, "load", lambda *given: loads.append(1) or load(*given))
    space, cache = search.Space.of("adam", FEW), DatasetCache()
    search.search(
        configure(tmp_path), space, seconds=8.0, trials=2, seeds=[100], cache=cache, widenings=0
    )
    assert len(loads) == 1


def test_several_pairs_are_searched_each_in_its_own_process(tmp_path, monkeypatch) -> None:
    started = []

    def run_all(commands, jobs, begin) -> list[int]:
        started.extend(commands)
        assert jobs == 2
        return [0] * len(commands)

    monkeypatch.setattr(tune, "run_all", run_all)
    given = ["task=digits,circle", "optim=adam,snopt", "threads=1", "--jobs", "2", "--trials", "3"]
    assert tune.main([*given, "--results", str(tmp_path)]) == 0
    pairs = [command[3:5] for command in started]
    assert pairs[:2] == [["task=digits", "optim=adam"], ["task=digits", "optim=snopt"]]
    assert len(pairs) == 4
    for command in started:
        assert {"threads=1", "--trials=3", f"--results={tmp_path}"} <= set(command)


def test_a_pair_that_fails_is_named_and_an_interruption_too(tmp_path, monkeypatch, capsys) -> None:
    given = ["task=digits", "optim=adam,snopt", "--results", str(tmp_path)]
    monkeypatch.setattr(tune, "run_all", lambda *rest: [0, 1])
    assert tune.main(given) == 1
    assert "not tuned: digits snopt" in capsys.readouterr().err
    monkeypatch.setattr(tune, "run_all", lambda *rest: [130, None])
    assert tune.main(given) == 130


def test_seeds_of_results_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="7 is for results"):
        search.search(configure(tmp_path), search.Space.of("adam"), seconds=1.0, seeds=[100, 7])
    assert not list(tmp_path.iterdir())


def found(space: search.Space, wider: search.Space | None = None) -> search.Found:
    """Two trials, whose first had a full run."""
    first, other = space.draw(2, seed=0)
    short, whole = search.Rung(2, 2.0, 100), search.Rung(1, 16.0, 100)
    best = search.Trial(first, (search.Result(short, 0.5, 9), search.Result(whole, 0.25, 72)))
    second = search.Trial(other, (search.Result(short, 0.75, 8),))
    return search.Found([best, second], [space] if wider is None else [space, wider])


def flat(text: str) -> dict[str, Any]:
    parts = yaml.safe_load(text)
    return {f"{group}.{key}": value for group, keys in parts.items() for key, value in keys.items()}


def test_file_says_how_it_was_found_and_for_which_length() -> None:
    space = search.Space.of("sgd")
    wider = replace(space, lr=search.LogUniform(0.01, 10.0))
    result = found(space, wider)
    text = tune.render(result, space, "python -m scripts.tune ...", "8 s", "history.md")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[1:] == [
        "# Found by: python -m scripts.tune ...",
        "# 2 trials in runs of 8 s; all of the search: history.md",
    ]
    length = {"tuned_for.seconds": 16.0, "tuned_for.clock": "wall", "tuned_for.steps": 72}
    assert flat(text) == {**result.trials[0].changes, **length}
    history = tune.record(result, "sgd", "python -m scripts.tune ...", "8 s each")
    assert "Space: lr 0.01..1; " in history
    assert "Widened, the best lay at an edge: lr 0.01..10; " in history
    assert "\n0.5 -> 0.25  optim.lr=" in history


def test_file_keeps_what_was_given() -> None:
    given = {"optim.betas": "[0.8,0.9]", "schedule.warmup": "0.05"}
    space = search.Space.of("adamw", given)
    result = found(space)
    written = flat(tune.render(result, space, "python -m scripts.tune ...", "8 s", "history.md"))
    assert written["optim.betas"] == [0.8, 0.9]
    assert written["optim.lr"] == result.trials[0].changes["optim.lr"]
    assert written["schedule.warmup"] == 0.05


def test_searches_that_end_at_once_all_get_into_the_history(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mnist.md"
    write = tune.write_file
    monkeypatch.setattr(tune, "write_file", lambda *given: (time.sleep(0.02), write(*given)))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: tune.append(path, "# mnist\n", f"## {i}\n"), range(6)))
    title, *sections = path.read_text().splitlines()
    assert title == "# mnist"
    assert sorted(sections) == [f"## {i}" for i in range(6)]


def test_command_writes_a_file_that_composes(tmp_path, monkeypatch) -> None:
    written = {}
    monkeypatch.setattr(
        tune, "write_file", lambda path, text: written.update({path: text.decode()})
    )
    monkeypatch.setattr(tune, "search", lambda configure, space, **rest: _composed(configure))
    arguments = ["task=digits", "optim=adam", "--seconds", "7", "--results", str(tmp_path)]
    assert tune.main(arguments) == 0
    (path, text), (history, _) = written.items()
    root = tune.composing.CONF.parent
    assert path == root / "conf/tuned/digits/adam.yaml"
    assert history == root / "results/reference/tuning/digits.md"
    assert (
        "task=digits optim=adam --trials=16 --seconds=7 --seeds=100,101 --select=valid "
        "--draw-seed=0\n" in text
    )
    assert str(tmp_path) not in text
    assert tune.main([*arguments, "task.batch_size=64", "train.clock=cpu"]) == 0
    length = {"seconds": 7.0, "clock": "cpu", "steps": 50}
    tuned = {"optim": {"lr": 0.5}, "task": {"batch_size": 64}, "tuned_for": length}
    assert yaml.safe_load(written[path]) == tuned


def test_settings_of_a_class_from_outside_are_its_alone(tmp_path, monkeypatch) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(tune.composing.CONF, conf)
    monkeypatch.setattr(tune.composing, "CONF", conf)
    rate = {"optim.lr": 0.5}
    result = (search.Result(search.Rung(1, 7.0, 100), 1.0, 50),)

    def found(configure, space, **rest) -> search.Found:
        assert configure(rate)["optim"]["rho"] == 0.9
        return search.Found([search.Trial(rate, result)], [space])

    monkeypatch.setattr(tune, "search", found)
    asked = ["task=digits", "optim=custom", "optim._target_=torch.optim.Rprop", "optim.rho=0.9"]
    asked += ["optim.about.first_order=true"]
    assert tune.main([*asked, "--seconds=7", "--results", str(tmp_path / "results")]) == 0
    assert [path.name for path in (conf / "tuned" / "digits").iterdir()] == ["rprop.yaml"]
    text = (conf / "tuned" / "digits" / "rprop.yaml").read_text()
    assert " ".join(asked) in text
    assert "## rprop" in (tmp_path / "results/reference/tuning/digits.md").read_text()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        tuned, other = (
            compose("config", overrides=["task=digits", "optim=custom", *more]).optim
            for more in (["tuned=digits/rprop"], ["optim._target_=torch.optim.NAdam"])
        )
    assert (tuned._target_, tuned.rho, tuned.lr) == ("torch.optim.Rprop", 0.9, 0.5)
    assert tuned.keys() - other.keys() == {"rho"}  # about.first_order is no setting of the class
    assert other.lr == 1e-3  # of conf/optim/custom.yaml


def _composed(configure) -> search.Found:
    config = configure({"seed": 100, "optim.lr": 0.5, "train.max_seconds": 7.0})
    assert (config["optim"]["lr"], config["seed"]) == (0.5, 100)
    train = config["train"]
    assert train["max_epochs"] is train["max_steps"] is train["eval_every_epochs"] is None
    assert train["eval_splits"] == ["valid"]
    assert config["tuned_for"] == {"steps": None, "seconds": None, "clock": "wall"}
    result = search.Result(search.Rung(1, 7.0, 100), 1.0, 50)
    return search.Found([search.Trial({"optim.lr": 0.5}, (result,))], [search.Space.of("adam")])


def test_dry_run_says_what_it_will_cost(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tune, "search", lambda *rest, **more: pytest.fail("it ran"))
    given = ["task=digits,circle", "optim=adam", "--seconds=80", "--results", str(tmp_path)]
    assert tune.main([*given, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "16 runs of 10 s with seed 100 4 runs of 20 s with seed 101 3 runs of 80 s" in said
    assert "2 searches of 23 runs and 480 s of training each, 960 s in all, as much again" in said
    assert tune.main([*given, "--dry-run", "--no-widen", "task=digits"]) == 0
    said = capsys.readouterr().out
    assert "1 search of 23 runs" in said
    assert "as much again" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim=adam"], "say what to tune"),
        (["task=digits", "optim=adam", "optim.lr=1"], "optim.lr is what is searched"),
        (["task=digits", "optim=adam", "train.max_seconds=9"], "say --seconds="),
        (
            ["task=digits", "optim=adam", "optim.about.search.lr.to=1"],
            "optim.about.search is read from",
        ),
        (["task=digits", "optim=adam", "train.target=0.9"], "train.target ends a trial"),
        (["task=digits", "optim=adam", "train.max_steps=9"], "train.max_steps ends a trial"),
        (["task=digits", "optim=adam", "train.max_epochs=2"], "train.max_epochs ends a trial"),
        (["task=digits", "optim=adam", "train.eval_splits=[test]"], "say --select="),
        (["task=digits", "optim=adan"], "Did you mean adam"),
        (["task=digits", "optim=custom"], r"optim._target_ is missing"),
        (["task=digits", "optim=custom", "optim._target_=torch.optim.Adam"], "another name"),
        (["task=digits", "optim=custom", "optim.lr=1"], "optim.lr is what is searched"),
        (["task=digits", "optim=adam,lbfgs"], "optim=lbfgs: no such choice"),
        (["task=digits", "optim=adam", "--seeds", "3"], "3 is for results"),
        (["task=digits", "optim=adam", "--seeds", "100,100"], "a seed is given twice"),
        (["task=digits", "optim=adam", "--seconds=-3"], "--seconds=-3: must be positive"),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tune, "search", lambda *rest, **more: pytest.fail("it ran before"))
    assert tune.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("flag", ["--trials", "--jobs"])
def test_counts_are_at_least_one(flag, capsys) -> None:
    with pytest.raises(SystemExit):
        tune.main(["task=digits", "optim=adam", flag, "0"])
    assert "0: must be a whole number, at least 1" in capsys.readouterr().err
