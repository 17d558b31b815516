"""The recorder's rows, what it calls the best, and counting on from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import snopt
from tasks.engine.records.clock import Clock
from tasks.engine.training.batches import BatchSampler
from tasks.engine.training.learner import Learner
from tasks.engine.training.progress import Progress
from tasks.engine.training.recorder import Counters, Recorder
from tests.support import fake


class Kept:
    """Takes what a run's files would."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.saved: dict[str, Any] = {}

    def append(self, rows) -> None:
        self.rows += rows

    def save(self, state) -> None:
        self.saved = state

    @property
    def values(self) -> list[tuple[int, str, str, float]]:
        return [(row["step"], row["split"], row["metric"], row["value"]) for row in self.rows]


class Diagnosed(torch.optim.SGD):
    def diagnostics(self) -> dict[str, float]:
        return {"damping": 0.5, "refreshes": 3.0, "refresh_failures": 1.0}


def recorder(kept: Kept, *, higher: bool = True, log_every: int = 2) -> Recorder:
    task = fake.Rings()
    task.higher_is_better = higher
    splits = task.load(None, 0, torch.device("cpu"), torch.float32)
    model = nn.Sequential(
        snopt.ODEBlock(fake.Field(), method="euler", options={"steps": 3}), nn.Linear(4, 2)
    )
    order = BatchSampler(splits.train, 50, 0)
    learner = Learner(task, splits, order, model, Diagnosed(model.parameters(), 0.1))
    seconds = iter(range(10_000))
    clock = Clock(now=lambda: float(next(seconds)))
    clock.switch("forward")
    progress = Progress("a test", "off")
    return Recorder(learner, clock, kept, progress, log_every=log_every, identity={"seed": 7})


def made(recorder: Recorder, loss: float | None, probed: dict[str, float] | None = None) -> None:
    recorder.begin_step()
    recorder._learner.model(torch.ones(2, 4))
    recorder._learner.sampler.next()
    recorder.counters.step += 1
    recorder.step(loss, probed or {}, 0.0)


def measures(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 1.0}


def test_rows_of_steps() -> None:
    kept = Kept()
    run = recorder(kept)
    made(run, 0.9)
    made(run, 0.8, {"probe/error": 0.25})
    made(run, None)
    run.divergence()
    assert kept.values[:-1] == [
        (2, "train", "probe/error", 0.25),
        (2, "train", "batch_loss", 0.8),
        (2, "train", "optimizer/damping", 0.5),
        (2, "train", "optimizer/refreshes", 3.0),
        (2, "train", "optimizer/refresh_failures", 1.0),
        (3, "train", "skipped_steps", 1.0),
    ]
    assert kept.values[-1][:3] == (4, "train", "batch_loss")
    assert math.isnan(kept.values[-1][3])
    assert [row["nfe_forward"] for row in kept.rows] == [6] * 5 + [9] * 2
    assert [row["epoch"] for row in kept.rows] == [1] * 7
    assert list(kept.rows[0]) == [
        "step", "epoch", "split", "metric", "value", "seconds", "cpu_seconds", "wall",
        "nfe_forward", "nfe_backward",
    ]  # fmt: skip


def test_rows_of_one_step_have_one_stamp_and_stamps_only_grow() -> None:
    kept = Kept()
    run = recorder(kept, log_every=1)
    for _ in range(3):
        made(run, 0.5)
    stamps = [(row["seconds"], row["wall"]) for row in kept.rows]
    assert stamps == sorted(stamps)
    assert len(set(stamps)) == 3


def test_time_left_is_what_a_person_waits(monkeypatch) -> None:
    run = recorder(Kept())
    drawn: list[float] = []
    monkeypatch.setattr(run._progress, "due", lambda: True)
    monkeypatch.setattr(run._progress, "draw", lambda *shown: drawn.append(shown[-1]))
    run._clock.switch("evaluation")
    for _ in range(20):
        _ = run._clock.wall
    run._clock.switch("forward")
    made(run, 0.5)
    assert drawn[0] > run._clock.seconds + 15


@pytest.mark.parametrize(
    ("higher", "measured", "best"),
    [
        (True, [0.2, 0.5, 0.4, 0.5], 1),
        (False, [0.2, 0.5, 0.1, 0.1], 2),
        (True, [math.nan, math.nan, 0.1, 0.0], 2),
        (False, [0.3, math.nan, 0.4], 0),
    ],
)
def test_the_best_is_the_first_of_the_best_validation_values(higher, measured, best) -> None:
    kept = Kept()
    run = recorder(kept, higher=higher)
    for step, value in enumerate(measured):
        run.counters.step = step
        run.evaluation({"valid": measures(value), "test": measures(step / 10)})
    found = run.counters.best
    assert (found["step"], found["metric"]) == (best, "accuracy")
    assert (found["valid"], found["test"]) == (measured[best], best / 10)
    assert run.counters.final == {
        "valid": measures(measured[-1]),
        "test": measures((len(measured) - 1) / 10),
    }
    assert [value[:3] for value in kept.values[-4::2]] == [
        (len(measured) - 1, split, "accuracy") for split in ("valid", "test")
    ]


def test_without_a_validation_split_there_is_no_best() -> None:
    run = recorder(Kept())
    run.evaluation({"train": {"loss": 0.5, "accuracy": 0.5}})
    assert run.totals()["best"] is None


@pytest.mark.parametrize(
    ("higher", "value", "reached"),
    [(True, 0.5, True), (True, 0.6, True), (True, 0.4, False), (False, 0.4, True),
     (False, 0.6, False), (True, math.nan, False), (False, math.nan, False)],
)  # fmt: skip
def test_a_target_is_reached_from_the_right_side(higher, value, reached) -> None:
    run = recorder(Kept(), higher=higher)
    run.evaluation({"valid": measures(value)})
    assert run.reached(0.5, run.counters.final) is reached


def test_totals_add_up_and_count_on_from_a_checkpoint() -> None:
    kept, later = Kept(), recorder(Kept())
    run = recorder(kept)
    made(run, 0.5)
    made(run, None)
    run.evaluation({"valid": measures(0.75)})
    run.save({"model": {}})
    assert kept.saved.keys() == {"model", "identity", "state", "clock", "cpu_seconds"}
    assert kept.saved["identity"] == {"seed": 7}
    later.load(kept.saved)
    assert later.counters == run.counters == Counters(**kept.saved["state"])
    totals = later.totals()
    assert (totals["steps"], totals["skipped_steps"]) == (2, 1)
    assert (totals["refreshes"], totals["refresh_failures"]) == (3, 1)
    assert totals["wall"] == sum(totals["buckets"].values())
    assert totals["seconds"] >= kept.saved["clock"]["forward"] > 0
    assert totals["best"]["valid"] == 0.75
