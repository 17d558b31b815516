"""Integration time in runs: what is moved, logged, kept apart and refused."""

import json
from pathlib import Path

import pytest
from torch import nn

import snopt
from snopt.ode.block import blocks
from tasks.common.checks import ConfigError
from tasks.engine import experiment
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.records.runs import read_run
from tasks.engine.report.reload import rebuild
from tests.support import fake
from tests.support.composed import read
from tests.tasks.engine.config.test_config import CHOICES, ONE_STEP, TINY

HORIZON = {"rule": "feedback", "T0": 0.5, "every": 4, "penalty": 0.01}
RULES = sorted(path.stem for path in (composing.CONF / "horizon").glob("*.yaml"))


def logged(root: Path, metric: str, **changes) -> list[tuple[int, float]]:
    rows = fake.rows(fake.folder(root, **changes))
    return [(row["step"], row["value"]) for row in rows if row["metric"] == metric]


@pytest.mark.parametrize("rule", RULES)
def test_the_trace_is_logged(tmp_path, rule) -> None:
    changes = {"horizon": {**HORIZON, "rule": rule}, "train": {"eval_every_epochs": None}}
    summary = fake.train(tmp_path, **changes)
    T, q_t, q_tt, opened, feedback = (
        dict(logged(tmp_path, f"horizon/{name}", **changes))
        for name in ("T", "q_t", "q_tt", "open", "feedback")
    )
    assert list(T) == [0, 4, 8, 12, 16, 20]
    assert list(q_t) == list(q_tt) == list(opened) == list(feedback) == [4, 8, 12, 16, 20]
    assert T[0] == 0.5
    assert T[20] == summary["horizon"]
    assert (T[20] != 0.5) == (rule != "fixed")
    before = 0.5
    for step, first in opened.items():
        assert T[step] == pytest.approx(before + first + feedback[step], rel=1e-12)
        if rule == "feedback":
            assert first == pytest.approx(-0.1 * q_t[step] / q_tt[step], rel=1e-5)
        if rule == "first_order":
            assert (first, feedback[step]) == (pytest.approx(-0.1 * q_t[step], rel=1e-5), 0.0)
        before = T[step]


@pytest.mark.parametrize("rule", RULES)
def test_a_rebuilt_model_is_solved_to_the_time_that_its_run_ended_with(tmp_path, rule) -> None:
    changes = {"horizon": {**HORIZON, "rule": rule}}
    summary = fake.train(tmp_path, **changes)
    run = read_run(fake.folder(tmp_path, **changes))
    block = blocks(rebuild(run).model)["1"]
    assert block.t_span == (0.0, summary["horizon"])
    assert block.nfe_forward == 0  # what a solve costs is counted anew


def test_nothing_is_built_unless_asked(tmp_path) -> None:
    plain = fake.train(tmp_path / "plain")
    assert "horizon" not in plain
    assert logged(tmp_path / "plain", "horizon/T") == []
    # Its derivatives are looked at, and nothing else changes.
    watched = {"horizon": {"T0": 1.0, "every": 4}}
    assert fake.train(tmp_path / "watched", **watched)["final"] == plain["final"]


def test_identity(tmp_path) -> None:
    none, default = read("task=digits"), read("task=digits", "horizon=fixed", "horizon.every=7")
    without = {key: value for key, value in none.config.items() if key != "horizon"}
    assert config_hash(without) == config_hash(none.config) == config_hash(default.config)
    others = [
        read("task=digits", f"horizon={rule}", f"horizon.T0={start}").config
        for rule in RULES
        for start in (0.5, 1.0)
    ]
    assert len({config_hash(config) for config in [none.config, *others]}) == 7


def test_a_batch_left_out_leaves_nothing(tmp_path) -> None:
    changes = {
        "task": {"fail_at": [3]},
        "solver": {"on_failure": "skip_step"},
        "horizon": HORIZON,
    }
    assert fake.train(tmp_path, **changes)["skipped_steps"] == 1
    # Steps of the optimizer count, not batches.
    assert [s for s, _ in logged(tmp_path, "horizon/open", **changes)] == [5, 9, 13, 17]


@pytest.mark.parametrize("optim", CHOICES["optim"])
def test_every_optimizer_moves_it(tmp_path, optim) -> None:
    overrides = [f"optim={optim}", "horizon=feedback", "horizon.every=1", "task=digits"]
    settings = read(*overrides, f"results.root={tmp_path}", *ONE_STEP, *TINY["digits"])
    summary = experiment.train(settings)
    assert summary["outcome"] == "completed"
    assert summary["horizon"] not in (0.0, 1.0)


@pytest.mark.parametrize("task", ["japanese_vowels", "circle"])
def test_tasks_whose_block_runs_often_or_backwards(tmp_path, task) -> None:
    overrides = [f"task={task}", "optim=adam", "horizon=first_order", "horizon.every=1"]
    settings = read(*overrides, f"results.root={tmp_path}", *ONE_STEP, *TINY[task])
    summary = experiment.train(settings)
    assert 0.0 < summary["horizon"] != 1.0


class TwoBlocks(fake.Rings):
    def build_model(self, family, solver):
        one, other = (super(TwoBlocks, self).build_model(family, solver) for _ in range(2))
        return nn.Sequential(one, nn.Linear(2, 2), other)


def test_mistakes_are_explained(tmp_path) -> None:
    for task in ("silverbox", "plane_vibration"):
        with pytest.raises(ConfigError, match=r"no terminal time to choose\. Use horizon=fixed"):
            experiment.build_task(read(f"task={task}", "horizon=feedback"))
    with pytest.raises(ConfigError, match=r"2 ODE blocks \(0\.1, 2\.1\), and it takes one"):
        fake.train(tmp_path, task={"_target_": f"{__name__}.TwoBlocks"}, horizon=HORIZON)
    for change, message in (
        ("horizon.lr=-1", r"horizon: Horizon refuses its settings: lr=-1"),
        ("horizon.T0=0", r"horizon\.T0=0: must be greater than 0"),
        ("horizon.rule=second", r"horizon\.rule=second: no such choice"),
        ("horizon.T0=0.001", r"floor=0\.01 is above the block's horizon T=0\.001"),
    ):
        with pytest.raises(ConfigError, match=message):
            experiment.build_task(read("task=digits", "horizon=feedback", change))


class Momentum(fake.Rings):
    def build_model(self, family, solver):
        system = snopt.dynamics.HBNODE(fake.Field())
        start = snopt.dynamics.InitialState(nn.Linear(4, 4))
        # One Euler step would not see the damping in h.
        solver = {"method": "euler", "options": {"steps": 3}, "gradient": "direct"}
        block = snopt.ODEBlock(system, (0.0, 1.0), **solver)
        return nn.Sequential(
            nn.Linear(2, 4), start, block, snopt.dynamics.FirstPart(), nn.Linear(4, 2)
        )


def test_learned_scalars_are_logged_at_evaluations(tmp_path) -> None:
    task = {"_target_": f"{__name__}.Momentum", "name": "momentum"}
    fake.train(tmp_path, task=task)
    path = fake.folder(tmp_path, task=task)
    gamma = logged(tmp_path, "dynamics/2.field.gamma", task=task)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in gamma] == [r["step"] for r in rows if r["split"] == "valid"][::2]
    assert gamma[0][1] == pytest.approx(0.0474, abs=1e-4)
    assert len({value for _, value in gamma}) == len(gamma)
