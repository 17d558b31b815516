"""The search itself: equal for every optimizer, blind to the test split, repeatable."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from scripts import search
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


def test_seeds_of_results_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="7 is for results"):
        search.search(configure(tmp_path), search.Space.of("adam"), seconds=1.0, seeds=[100, 7])
    assert not list(tmp_path.iterdir())
