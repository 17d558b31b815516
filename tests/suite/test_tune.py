"""The search for settings: equal for every optimizer, blind to the test split, repeatable."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from scripts import search, tune
from tasks.common.checks import ConfigError
from tasks.engine.training.dataset_cache import DatasetCache
from tests.suite import fake

LIMITS = {"train": {"max_steps": 5, "eval_every_epochs": None, "eval_at_start": False}}


def configure(root, seen: list[dict[str, Any]] | None = None, **base: Any) -> search.Configure:
    def configured(changes: Mapping[str, Any]) -> dict[str, Any]:
        if seen is not None:
            seen.append(dict(changes))
        config = fake.config(root, **LIMITS, **base)
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = config[parents[0]] if parents else config
            node[last] = value
        return config

    return configured


def test_every_optimizer_gets_the_same_points() -> None:
    assert search.Space("snopt").draw(8, seed=3) == search.Space("adamw").draw(8, seed=3)
    sgd, soap = (search.Space(optim).draw(8, seed=3) for optim in ("sgd", "soap"))
    for one, other in zip(sgd, soap, strict=True):
        assert one["optim.lr"] == pytest.approx(10 * other["optim.lr"], rel=0.02)
        assert one["optim.field_lr"] == pytest.approx(10 * other["optim.field_lr"], rel=0.02)
        assert one["schedule.name"] == other["schedule.name"]
        assert one["schedule.warmup"] == other["schedule.warmup"]


@pytest.mark.parametrize("optim", search.ranges())
def test_points_fill_the_space_and_stay_in_it(optim) -> None:
    lr = search.ranges()[optim]["lr"]
    low, high = lr.low, lr.high
    drawn = search.Space(optim).draw(16, seed=0)
    rates = [changes["optim.lr"] for changes in drawn]
    middle = math.sqrt(low * high)
    assert sum(rate < middle for rate in rates) == 8
    assert all(low <= rate <= high for rate in rates)
    ratios = [changes["optim.field_lr"] / changes["optim.lr"] for changes in drawn]
    assert all(0.0099 <= ratio <= 1.01 for ratio in ratios)
    assert sum(changes["schedule.name"] == "cosine" for changes in drawn) == 8
    assert {changes["schedule.warmup"] for changes in drawn} == {0.0, 0.05, 0.15}
    for key, space in search.Space(optim).own.items():
        values = [changes[key] for changes in drawn]
        if isinstance(space, search.Choice):
            counts = [values.count(value) for value in space.values]
            assert sum(counts) == 16
            assert max(counts) - min(counts) <= 2
        else:
            assert space.low <= min(values) < max(values) <= space.high


def test_settings_that_are_given_are_not_searched() -> None:
    space = search.Space("adamw", given={"optim.betas": "[0.8,0.9]", "schedule.warmup": "0"})
    for changes in space.draw(8, seed=0):
        assert changes.keys() - {"schedule.final_factor"} == {
            "optim.lr",
            "optim.field_lr",
            "schedule.name",
        }


def test_a_closer_search_stays_about_the_rates_found_before() -> None:
    drawn = search.Space("adamw", around=(0.02, 0.001)).draw(16, seed=0)
    whole = search.Space("adamw").draw(16, seed=0)
    rates = [changes["optim.lr"] for changes in drawn]
    assert sum(rate < 0.02 for rate in rates) == 8
    assert 0.00666 < min(rates) < 0.01 < 0.04 < max(rates) < 0.0601
    ratios = [changes["optim.field_lr"] / changes["optim.lr"] for changes in drawn]
    assert all(0.0166 < ratio < 0.151 for ratio in ratios)
    for near, far in zip(drawn, whole, strict=True):
        assert near["optim.betas"] == far["optim.betas"]
        assert near["schedule.warmup"] == far["schedule.warmup"]


def test_search_runs_equal_trials_and_sorts_them(tmp_path) -> None:
    seen: list[dict[str, Any]] = []
    tried = search.search(
        configure(tmp_path, seen), search.Space("adam"), trials=3, steps=5, seeds=[100, 101]
    )
    trials = [changes for changes in seen if "optim.lr" in changes]
    assert [changes["seed"] for changes in trials] == [100] * 3 + [101] * 2
    assert {changes["train.max_steps"] for changes in trials} == {5}
    assert [len(trial.losses) for trial in tried] == [2, 2, 1]
    firsts = [trial.losses[0] for trial in tried]
    assert max(firsts[:2]) <= firsts[2]
    assert tried[0].score <= tried[1].score
    assert all("train.max_steps" not in trial.changes for trial in tried)


def test_settings_that_fail_on_the_next_seed_make_room(tmp_path, monkeypatch) -> None:
    ends = {100: iter([0.1, 0.2, 0.3, math.inf]), 101: iter([math.inf, 0.5, 0.3])}
    monkeypatch.setattr(search, "run", lambda configure, changes, seed, *rest: next(ends[seed]))
    tried = search.search(
        configure(tmp_path), search.Space("adam"), trials=4, steps=5, seeds=[100, 101]
    )
    assert [trial.losses for trial in tried] == [
        (0.3, 0.3),
        (0.2, 0.5),
        (0.1, math.inf),
        (math.inf,),
    ]


def test_score_is_the_final_loss_of_the_chosen_split(tmp_path) -> None:
    record = fake.train(tmp_path / "a", seed=100, **LIMITS)
    for split in ("train", "valid"):
        loss = search.run(configure(tmp_path / split), {}, 100, split)
        assert loss == pytest.approx(record["final"][split]["loss"])


def test_trials_are_kept_and_not_made_again(tmp_path) -> None:
    given = {"trials": 2, "steps": 5, "seeds": [100]}
    first = search.search(configure(tmp_path), search.Space("adam"), **given)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(written) == 2
    assert search.search(configure(tmp_path), search.Space("adam"), **given) == first
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}


def test_time_becomes_steps(tmp_path, monkeypatch) -> None:
    clock = {"wall": 0.0, "cpu": 0.0}

    def run(configure, changes, seed, select, cache) -> float:
        # 2 s besides 0.25 s a step of the processor, that the machine takes three times as long for
        spent = 2.0 + 0.25 * changes["train.max_steps"]
        clock["cpu"] += spent
        clock["wall"] += 3.0 * spent
        return 1.0

    monkeypatch.setattr(search, "run", run)
    monkeypatch.setattr(search.time, "process_time", lambda: clock["cpu"])
    monkeypatch.setattr(search.time, "perf_counter", lambda: clock["wall"])
    assert search.steps_in(configure(tmp_path), 10.0, 100) == 40


def test_a_run_that_diverged_never_wins(tmp_path) -> None:
    task = {"_target_": "tests.suite.fake.Rings", "name": "rings", "explode_at": 3}
    loss = search.run(configure(tmp_path, task=task), {}, 100, "train")
    assert loss == math.inf


def test_a_costly_trial_is_ended_and_counts(tmp_path) -> None:
    (tried,) = search.search(
        configure(tmp_path), search.Space("adam"), trials=1, steps=10**6, seeds=[100], ceiling=0.05
    )
    assert math.isfinite(tried.score)


def test_data_are_loaded_once(tmp_path, monkeypatch) -> None:
    loads = []
    load = fake.Rings.load
    monkeypatch.setattr(fake.Rings, "load", lambda *given: loads.append(1) or load(*given))
    cache = DatasetCache()
    search.steps_in(configure(tmp_path), 0.1, 100, cache)
    search.search(
        configure(tmp_path), search.Space("adam"), trials=2, steps=5, seeds=[100], cache=cache
    )
    assert len(loads) == 1


def test_steps_are_measured_once_for_the_same_question(tmp_path) -> None:
    path, answers = tmp_path / "digits" / "adam-steps.json", iter((7, 8))

    def steps(seconds: float) -> int:
        return tune.remembered(path, {"seconds": seconds}, lambda: next(answers))

    assert [steps(10.0), steps(10.0), steps(20.0), steps(20.0)] == [7, 7, 8, 8]
    path.write_text("{")
    assert tune.remembered(path, {"seconds": 1.0}, lambda: 9) == 9


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
        search.search(configure(tmp_path), search.Space("adam"), trials=1, steps=5, seeds=[100, 7])
    assert not list(tmp_path.iterdir())


def test_optimizer_without_a_range() -> None:
    with pytest.raises(ConfigError, match=r"Choices: .*adamw"):
        search.Space("lbfgs")


def test_file_says_how_it_was_found() -> None:
    first, other = search.Space("sgd").draw(2, seed=0)
    best, second = search.Trial(first, (0.25,)), search.Trial(other, (0.5,))
    space, command = search.Space("sgd"), "python -m scripts.tune ..."
    text = search.render([best, second], space, command, "8 steps", "history.md")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[1:] == [
        "# Found by: python -m scripts.tune ...",
        "# 2 trials of 8 steps; all of the search: history.md",
    ]
    history = search.record([best, second], space, "sgd", command, "8 steps each")
    assert "Best and second: 0.25, 0.5\n" in history
    assert "lr 0.01..1 " in history
    parts = yaml.safe_load(text)
    flat = {f"{group}.{key}": value for group, keys in parts.items() for key, value in keys.items()}
    assert flat == best.changes


def test_file_keeps_what_was_given() -> None:
    given = {"optim.betas": "[0.8,0.9]", "schedule.warmup": "0.05"}
    space = search.Space("adamw", given)
    trial = search.Trial(space.draw(1, seed=0)[0], (0.25,))
    text = search.render([trial], space, "python -m scripts.tune ...", "8 steps", "history.md")
    parts = yaml.safe_load(text)
    assert parts["optim"]["betas"] == [0.8, 0.9]
    assert parts["optim"]["lr"] == trial.changes["optim.lr"]
    assert parts["schedule"]["warmup"] == 0.05
    assert "betas [0.8" not in str(space)


def test_command_writes_a_file_that_composes(tmp_path, monkeypatch, capsys) -> None:
    written = {}
    monkeypatch.setattr(tune, "write", lambda path, text: written.update({path: text}))
    monkeypatch.setattr(tune, "search", lambda configure, space, **rest: _composed(configure))
    arguments = ["task=digits", "optim=adam", "--steps", "7", "--results", str(tmp_path)]
    assert tune.main(arguments) == 0
    (path, text), (history, _) = written.items()
    root = tune.cli.CONF.parent
    assert path == root / "conf/tuned/digits/adam.yaml"
    assert history == root / "results/reference/tuning/digits.md"
    assert (
        "task=digits optim=adam --trials 8 --seconds 10 --steps 7 --seeds 100,101 "
        "--finalists 2 --select train" in text
    )
    assert str(tmp_path) not in text
    assert tune.main([*arguments, "schedule.name=cosine", "--around", "0.02,0.001"]) == 0
    assert "--draw-seed 0 --around 0.02,0.001\n" in written[path]
    space = written[history].rpartition("Space: ")[2].partition("\n")[0]
    assert space.startswith("lr 0.00667..0.06 and field_lr / lr 0.0167..0.15, log-uniform;")
    assert "constant" not in space
    assert tune.main([*arguments, "task.batch_size=64", "train.log_every_steps=5"]) == 0
    assert yaml.safe_load(written[path]) == {"optim": {"lr": 0.5}, "task": {"batch_size": 64}}


def _composed(configure) -> list[search.Trial]:
    config = configure({"seed": 100, "optim.lr": 0.5})
    assert (config["optim"]["lr"], config["seed"]) == (0.5, 100)
    assert config["train"]["eval_every_epochs"] is None
    assert config["train"]["eval_splits"] == ["train"]
    return [search.Trial({"optim.lr": 0.5}, (1.0,)), search.Trial({"optim.lr": 0.1}, (2.0,))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim=adam"], "say what to tune"),
        (["task=digits", "optim=adam", "optim.lr=1"], "optim.lr is what is searched"),
        (["task=digits", "optim=adan"], "Did you mean adam"),
        (["task=digits", "optim=adam,lbfgs"], "optim=lbfgs: no such choice"),
        (["task=digits", "optim=adam,sgd", "--around", "0.1,0.01"], "one task and one optimizer"),
        (["task=digits", "optim=adam", "--around", "0.1,0"], "must be positive and finite"),
        (["task=digits", "optim=adam", "--jobs", "0"], "--jobs=0: must be at least 1"),
        (["task=digits", "optim=adam", "--seeds", "3"], "3 is for results"),
        (["task=digits", "optim=adam", "--seeds", "100,100"], "a seed is given twice"),
        (["task=digits", "optim=adam", "--seconds=-3"], "--seconds=-3: must be positive"),
        (
            ["task=digits", "optim=adam", "--trials", "0"],
            "--trials=0: must be at least 1",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tune, "steps_in", lambda *rest: pytest.fail("trained before it said so"))
    assert tune.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("typed", ["0.1", "0.1,x", "0.1,0.1,0.1"])
def test_rates_to_look_around_are_two_numbers(typed, capsys) -> None:
    with pytest.raises(SystemExit):
        tune.main(["task=digits", "optim=adam", "--around", typed])
    assert f"{typed}: give two rates, as 0.01,0.001" in capsys.readouterr().err


def test_files_are_written_whole(tmp_path) -> None:
    tune.write(tmp_path / "new" / "a.yaml", "a: 1\n")
    tune.write(tmp_path / "new" / "a.yaml", "a: 2\n")
    assert [p.read_text() for p in (tmp_path / "new").iterdir()] == ["a: 2\n"]
