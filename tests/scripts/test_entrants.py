"""How the settings of an optimizer on a workload are chosen, and when they are chosen again."""

import json
import math
from types import SimpleNamespace

import pytest
import yaml

from scripts.ranking import entrants, workloads
from scripts.ranking.entrants import Entrant, Trainer, make
from scripts.ranking.workloads import Workload
from scripts.search import Found, Result, Trial, rungs
from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tests.support.toy_workload import OF_MINE, decided, fixed


def test_rates_are_chosen_on_tuning_seeds_without_the_test_split(toy) -> None:
    workloads.fix(Workload.read("toy"), fixed())
    entrant = Entrant("default", Workload.read("toy"), "adamw", toy / "results")
    said: list[str] = []
    make(entrant, [0], said.append)
    choice = entrant.choice()
    assert choice is not None
    trials = [(tried.seed, tried.settings["train.max_seconds"]) for tried in choice.trials]
    assert sorted(trials) == [(100, 0.1)] * 4 + [(101, 0.1)] * 2 + [(101, 0.2)] * 2
    for config in entrant.runs.rglob("config.yaml"):
        seed = int(config.parent.name.rpartition("-s")[2])
        splits = yaml.safe_load(config.read_text())["train"]["eval_splits"]
        assert splits == (["valid", "test"] if seed == 0 else ["valid"])
    assert len(said) == 4 + 4 + 1
    (final,) = entrant.finals([0])
    assert entrant.finals([0, 1]) == []
    stamps = {p: p.stat().st_mtime_ns for p in entrant.runs.rglob("metrics.jsonl")}
    make(entrant, [0], said.append)  # all of it is there
    assert {p: p.stat().st_mtime_ns for p in entrant.runs.rglob("metrics.jsonl")} == stamps
    assert json.loads((final / "run.json").read_text())["seed"] == 0
    cpu, wall = entrant.spent()
    assert 0 < cpu < wall


def test_settings_that_ran_with_both_seeds_count_by_the_mean(toy, monkeypatch) -> None:
    entrant = Entrant("default", Workload.read("toy"), "sgd", toy)
    low, high = entrant.about.rates[:2]
    losses = {
        (low, 0.1, 100): 0.1,
        (high, 0.1, 100): 0.6,
        (low, 0.1, 101): 0.5,
        (high, 0.1, 101): 0.2,
        (low, 0.2, 101): 0.4,
        (high, 0.2, 101): 0.45,
    }

    def run(self, changes, seed):
        key = (changes["optim.lr"], changes["train.max_seconds"], seed)
        return SimpleNamespace(best=losses.get(key, 1.0))

    monkeypatch.setattr(Trainer, "run", run)
    chosen = Trainer(entrant, print).choose().settings
    assert chosen["optim.lr"] == low  # 0.3 by the mean; 0.2 on the last seed alone is luck
    assert chosen["train.max_seconds"] == 0.1


def test_a_choice_for_another_target_or_other_defaults_is_made_again(toy) -> None:
    workload = Workload.read("toy")
    entrant = Entrant("default", workload, "adamw", toy / "results")
    decided(entrant)
    assert entrant.choice() is not None
    other = Entrant("default", workload, "adamw", entrant.root, ("optim.weight_decay=0.03",))
    assert other.choice() is None  # other defaults are another optimizer
    workloads.fix(workload, fixed())
    assert Entrant("default", Workload.read("toy"), "adamw", toy / "results").choice() is None


def test_a_choice_among_other_rates_is_made_again(toy) -> None:
    entrant = Entrant("default", Workload.read("toy"), "adamw", toy / "results")
    decided(entrant)
    path = composing.CONF / "optim" / "adamw.yaml"
    rates = "rates: [3e-3, 1e-2, 3e-2, 0.1]"
    assert rates in path.read_text()
    path.write_text(path.read_text().replace(rates, "rates: [3e-2, 0.1, 0.3, 1.0]"))
    other = Entrant("default", Workload.read("toy"), "adamw", toy / "results")
    assert entrant.choice() is not None
    assert other.choice() is None
    kept = json.loads(entrant.chosen.read_text())
    del kept["among"]  # as choices were kept that were made before
    entrant.chosen.write_text(json.dumps(kept))
    assert entrant.choice() is not None


def test_one_s_own_may_not_be_called_as_another(toy) -> None:
    workload = Workload.read("toy")
    one = Entrant("default", workload, "custom", toy, ("optim._target_=torch.optim.Adam",))
    with pytest.raises(ConfigError, match=r"adam is conf/optim/adam\.yaml\. Give yours another"):
        _ = one.label
    named = Entrant("default", workload, "custom", toy, (*one.overrides, "optim.name=my_adam"))
    assert named.label == Settings.read(named.configure({})).names[2] == "my_adam"


@pytest.mark.parametrize("given", [(), ("optim.field_lr=0.02",)])
def test_what_is_given_is_not_searched(toy, mine, monkeypatch, given) -> None:
    """And an optimizer whose trials all diverge has no choice."""
    drawn = []

    def diverge(configure, space, **more) -> Found:
        drawn.extend(space.draw(4, seed=0))
        lost = Result(rungs(4, more["seconds"])[0], math.inf, 3)
        return Found([Trial(changes, (lost,)) for changes in drawn], [space])

    monkeypatch.setattr(entrants, "search", diverge)
    one = Entrant("tuned", Workload.read("toy"), "custom", toy / "results", (*OF_MINE, *given))
    with pytest.raises(ConfigError, match="signum: every trial on toy diverged before"):
        make(one, [0], print)
    assert not one.chosen.exists()
    assert {"optim.field_lr" in changes for changes in drawn} == {not given}


def test_what_diverged_in_a_whole_run_is_no_choice(toy, monkeypatch) -> None:
    """However soon it was at the target before."""
    workload = Workload.read("toy")
    one = Entrant("tuned", workload, "sgd", toy / "results")
    whole = rungs(4, workload.seconds)[-1]

    def tried(*losses):
        def found(configure, space, **more) -> Found:
            drawn = zip(space.draw(2, seed=0), losses, strict=False)
            return Found([Trial(c, (Result(whole, loss, 9),)) for c, loss in drawn], [space])

        return found

    worth = {0.9: (5.0, 0.9), math.inf: (1.0, 0.1)}
    order = iter([worth[0.9], worth[math.inf], worth[math.inf]])
    monkeypatch.setattr(entrants, "Outcome", SimpleNamespace(read=lambda folder: folder))
    monkeypatch.setattr(entrants, "merit", lambda *rest: next(order))
    monkeypatch.setattr(entrants, "search", tried(0.9, math.inf))
    assert [one.merit for one in Trainer(one, print).search().trials] == [worth[0.9]]
    monkeypatch.setattr(entrants, "search", tried(math.inf))
    with pytest.raises(ConfigError, match="sgd: every trial on toy diverged before"):
        Trainer(one, print).search()
