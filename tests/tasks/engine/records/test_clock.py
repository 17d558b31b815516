import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tasks.engine import experiment  # noqa: F401 - imported before a clock starts
from tasks.engine.records.clock import BUCKETS, TRAINING, Clock, compile_seconds
from tasks.task import Batch
from tests.support import fake


def scripted(*times: float) -> Clock:
    ticks: Iterator[float] = iter(times)
    return Clock(now=lambda: next(ticks))


def test_seconds_on_processors_are_counted_while_training() -> None:
    wall, cpu = iter([0.0, 1.0, 5.0, 9.0, 9.0, 9.0]), iter([10.0, 11.0, 13.0, 16.0, 16.5, 17.0])
    clock = Clock(limits="cpu", now=lambda: next(wall), cpu_now=lambda: next(cpu))
    clock.switch("forward")
    clock.switch("evaluation")
    clock.switch("optimizer")
    assert clock.cpu_seconds == 2.0 + 0.5
    assert clock.elapsed == 2.0 + 1.0
    assert clock.seconds == 4.0


def test_every_second_is_charged_once() -> None:
    clock = scripted(0.0, 1.0, 3.0, 6.0, 10.0, 10.0)
    clock.switch("forward")
    clock.switch("backward")
    clock.switch("evaluation")
    buckets = clock.buckets()
    expected = {"other": 1.0, "forward": 2.0, "backward": 3.0, "evaluation": 4.0}
    assert buckets == {**dict.fromkeys(BUCKETS, 0.0), **expected}
    assert clock.wall == 10.0


def test_training_clock_stands_still_outside_of_training() -> None:
    clock = scripted(0.0, 0.0, 2.0, 102.0, 103.0)
    clock.switch("forward")
    with clock.during("evaluation"):
        assert clock.seconds == 2.0
    assert clock.seconds == 3.0


def test_during_goes_back_to_what_ran() -> None:
    clock = scripted(0.0, 1.0, 2.0, 3.0, 5.0)
    clock.switch("data")
    with pytest.raises(KeyError), clock.during("logging"):
        raise KeyError
    assert clock.buckets()["data"] == 1.0 + 2.0


def test_move_never_makes_a_bucket_negative() -> None:
    clock = scripted(0.0, 0.0, 4.0, 4.0, 4.0, 4.0)
    clock.switch("backward")
    clock.switch("optimizer")
    clock.move(3.0, "backward", "curvature")
    clock.move(3.0, "backward", "curvature")
    buckets = clock.buckets()
    assert (buckets["backward"], buckets["curvature"]) == (0.0, 4.0)


def test_load_adds_the_process_before() -> None:
    clock = scripted(0.0, 1.0, 1.0)
    clock.load({"forward": 5.0, "other": 2.0})
    assert clock.buckets()["forward"] == 5.0
    assert clock.wall == 8.0


def test_compile_seconds_are_those_that_the_compiler_tells(monkeypatch) -> None:
    told = {"_compile.compile_inner": [1.0, 2.0], "compile_fx.<locals>.bw_compiler": [0.5]}
    name = "torch._dynamo.utils"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(compilation_time_metrics=told))
    assert (compile_seconds("forward"), compile_seconds("backward")) == (3.0, 0.5)
    monkeypatch.delitem(sys.modules, name)  # it was never used
    assert compile_seconds("forward") == 0.0


class SlowToMeasure(fake.Rings):
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        time.sleep(0.005)
        return super().measure(outputs, batch)


class SlowCurvature(torch.optim.SGD):
    curvature_seconds = 0.0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        time.sleep(0.01)
        self.curvature_seconds += 0.01


def test_buckets_of_a_run_add_up_to_wall_time(tmp_path) -> None:
    target = f"{__name__}.SlowCurvature"
    begin = time.perf_counter()
    summary = fake.train(tmp_path, optim={"_target_": target, "name": "slow", "lr": 0.1})
    wall = time.perf_counter() - begin
    assert sum(summary["buckets"].values()) == pytest.approx(summary["wall"], rel=1e-9)
    # What lies outside of the clock is short, even on a busy machine.
    assert wall - 0.25 < summary["wall"] <= wall
    training = sum(summary["buckets"][bucket] for bucket in TRAINING)
    assert summary["seconds"] == pytest.approx(training, rel=1e-9)
    assert summary["buckets"]["curvature"] == pytest.approx(20 * 0.01, rel=0.01)


def test_evaluation_is_not_training(tmp_path) -> None:
    target = {"_target_": f"{__name__}.SlowToMeasure", "name": "slow"}
    summary = fake.train(tmp_path, task=target, train={"eval_every_steps": 1})
    evaluations = 21 * (4 + 2 + 2)  # batches of 32 in 100, 40 and 40 samples
    assert summary["buckets"]["evaluation"] >= evaluations * 0.005
    assert summary["seconds"] < 0.5 * summary["buckets"]["evaluation"]
