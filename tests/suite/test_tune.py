"""The search for settings: equal for every optimizer, blind to the test split, repeatable."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from scripts import tune
from tasks.settings import ConfigError
from tests.suite import fake

LIMITS = {"train": {"max_steps": 5, "eval_every_epochs": None, "eval_at_start": False}}


def configure(root, seen: list[dict[str, Any]] | None = None, **base: Any) -> tune.Configure:
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
    sgd, adam = (tune.draw(optim, 8, seed=3, horizon=50) for optim in ("sgd", "adam"))
    for one, other in zip(sgd, adam, strict=True):
        assert one["optim.lr"] == pytest.approx(10 * other["optim.lr"], rel=0.02)
        assert one["optim.field_lr"] == pytest.approx(10 * other["optim.field_lr"], rel=0.02)
        assert one["schedule.name"] == other["schedule.name"]
        assert one["schedule.warmup_steps"] == other["schedule.warmup_steps"]


@pytest.mark.parametrize("optim", tune.RATES)
def test_points_fill_the_space_and_stay_in_it(optim) -> None:
    low, high = tune.RATES[optim]
    assert math.isclose(high / low, 100.0)
    drawn = tune.draw(optim, 16, seed=0, horizon=50)
    rates = [changes["optim.lr"] for changes in drawn]
    middle = math.sqrt(low * high)
    assert sum(rate < middle for rate in rates) == 8
    assert all(low <= rate <= high for rate in rates)
    ratios = [changes["optim.field_lr"] / changes["optim.lr"] for changes in drawn]
    assert all(0.0099 <= ratio <= 1.01 for ratio in ratios)
    assert sum(changes["schedule.name"] == "cosine" for changes in drawn) == 8
    assert {changes["schedule.warmup_steps"] for changes in drawn} == set(tune.WARMUPS)


def test_search_runs_equal_trials_and_sorts_them(tmp_path) -> None:
    seen: list[dict[str, Any]] = []
    tried = tune.search(configure(tmp_path, seen), "adam", trials=3, steps=5, seeds=[100, 101])
    trials = [changes for changes in seen if "optim.lr" in changes]
    assert [changes["seed"] for changes in trials] == [100, 101] * 3
    assert {changes["train.max_steps"] for changes in trials} == {5}
    assert [trial.score for trial in tried] == sorted(trial.score for trial in tried)
    assert {changes.get("schedule.total_steps", 5) for changes in trials} == {5}
    assert all("train.max_steps" not in trial.changes for trial in tried)


def test_score_is_the_final_loss_of_the_chosen_split(tmp_path) -> None:
    record = fake.train(tmp_path / "a", seed=100, **LIMITS)
    for split in ("train", "valid"):
        loss = tune.run(configure(tmp_path / split), {}, 100, split)
        assert loss == pytest.approx(record["final"][split]["loss"])


def test_trials_are_kept_and_not_made_again(tmp_path) -> None:
    given = {"trials": 2, "steps": 5, "seeds": [100]}
    first = tune.search(configure(tmp_path), "adam", **given)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(written) == 2
    assert tune.search(configure(tmp_path), "adam", **given) == first
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}


def test_time_becomes_steps(tmp_path, monkeypatch) -> None:
    clock = {"wall": 0.0, "cpu": 0.0}

    def run(configure, changes, seed, select) -> float:
        # 2 s besides 0.25 s a step of the processor, that the machine takes three times as long for
        spent = 2.0 + 0.25 * changes["train.max_steps"]
        clock["cpu"] += spent
        clock["wall"] += 3.0 * spent
        return 1.0

    monkeypatch.setattr(tune, "run", run)
    monkeypatch.setattr(tune.time, "process_time", lambda: clock["cpu"])
    monkeypatch.setattr(tune.time, "perf_counter", lambda: clock["wall"])
    assert tune.steps_in(configure(tmp_path), 10.0, 100) == 40


def test_a_run_that_diverged_never_wins(tmp_path) -> None:
    task = {"_target_": "tests.suite.fake.Rings", "name": "rings", "explode_at": 3}
    loss = tune.run(configure(tmp_path, task=task), {}, 100, "train")
    assert loss == math.inf


def test_seeds_of_results_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="7 is for results"):
        tune.search(configure(tmp_path), "adam", trials=1, steps=5, seeds=[100, 7])
    assert not list(tmp_path.iterdir())


def test_optimizer_without_a_range(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"Choices: .*adamw"):
        tune.search(configure(tmp_path), "lbfgs", trials=1, steps=5, seeds=[100])


def test_file_says_how_it_was_found() -> None:
    first, other = tune.draw("sgd", 2, seed=0, horizon=9)
    best, second = tune.Trial(first, (0.25,)), tune.Trial(other, (0.5,))
    text = tune.render([best, second], "sgd", "python -m scripts.tune ...", "8 s each")
    assert text.startswith("# @package _global_\n# Found by: python -m scripts.tune ...\n")
    assert "# Best and second: 0.25, 0.5\n" in text
    assert "lr 0.01..1 " in text
    parts = yaml.safe_load(text)
    flat = {f"{group}.{key}": value for group, keys in parts.items() for key, value in keys.items()}
    assert flat == best.changes


def test_command_writes_a_file_that_composes(tmp_path, monkeypatch, capsys) -> None:
    written = {}
    monkeypatch.setattr(tune, "write", lambda path, text: written.update({path: text}))
    monkeypatch.setattr(tune, "search", lambda configure, optim, **rest: _composed(configure))
    arguments = ["task=digits", "optim=adam", "--steps", "7", "--results", str(tmp_path)]
    assert tune.main(arguments) == 0
    ((path, text),) = written.items()
    assert path.name == "digits-adam.yaml"
    assert "task=digits optim=adam --trials 8 --steps 7 --seeds 100 --select train" in text
    assert str(tmp_path) not in text


def _composed(configure) -> list[tune.Trial]:
    config = configure({"seed": 100, "optim.lr": 0.5})
    assert (config["optim"]["lr"], config["seed"]) == (0.5, 100)
    assert config["train"]["eval_every_epochs"] is None
    return [tune.Trial({"optim.lr": 0.5}, (1.0,)), tune.Trial({"optim.lr": 0.1}, (2.0,))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim=adam"], "say what to tune"),
        (["task=digits", "optim=adan"], "Did you mean adam"),
        (["task=digits", "optim=adam", "--steps", "5", "--seeds", "3"], "3 is for results"),
        (
            ["task=digits", "optim=adam", "--steps", "5", "--trials", "0"],
            "--trials=0: must be at least 1",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys) -> None:
    assert tune.main(arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_are_written_whole(tmp_path) -> None:
    tune.write(tmp_path / "new" / "a.yaml", "a: 1\n")
    tune.write(tmp_path / "new" / "a.yaml", "a: 2\n")
    assert [p.read_text() for p in (tmp_path / "new").iterdir()] == ["a: 2\n"]
