"""One reader of a run's folder: what was written comes back, and all of it is in the run."""

import json
import math

import pytest

from scripts.jobs import Job
from tasks.engine.records.metrics import Measurement, as_lines, parse_line, read_curves
from tasks.engine.report import read_run
from tests.support import fake
from tests.support.made_up_runs import made_up_run


def measurement(step: int, value: float, forward: int, backward: int) -> Measurement:
    return Measurement(
        step=step,
        epoch=0,
        split="test",
        metric="nll",
        value=value,
        seconds=0.5 * step,
        cpu_seconds=0.4 * step,
        wall=0.75 * step,
        nfe_forward=forward,
        nfe_backward=backward,
    )


def test_measurements_are_read_as_they_were_written() -> None:
    written = [measurement(0, 2.5, 0, 0), measurement(3, math.inf, 20, 31)]
    lines = as_lines(written).encode()
    first, second = map(parse_line, lines.splitlines())
    assert first == written[0]
    assert math.isnan(second.pop("value"))
    assert second == {key: value for key, value in written[1].items() if key != "value"}
    curves, damaged = read_curves(lines + b'{"step": 6, "spl')
    assert damaged == 1
    curve = curves["test", "nll"]
    assert (curve.steps.tolist(), curve.seconds.tolist()) == ([0, 3], [0, 1.5])
    assert (curve.nfe_forward.tolist(), curve.nfe_backward.tolist()) == ([0, 20], [0, 31])
    assert curve.along("nfe").tolist() == [0, 51]
    assert curve.finite().nfe_backward.tolist() == [0]


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"{}",
        b"\xff",
        b'{"step": -1, "split": "a", "metric": "b", "value": 1, "seconds": 1}',
    ],
)
def test_a_line_that_is_no_measurement_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        parse_line(line)


def test_a_run_holds_all_that_its_record_says(tmp_path) -> None:
    summary = fake.train(tmp_path)
    run = read_run(fake.folder(tmp_path))
    assert run.record["parameters"] == summary["parameters"] > 0
    assert run.steps_per_epoch == summary["steps_per_epoch"] > 0
    assert run.record["final"] == summary["final"]
    counters = (summary["nfe_forward"], summary["nfe_backward"])
    curve = run.curves["train", "loss"]
    assert (curve.nfe_forward[-1], curve.nfe_backward[-1]) == counters
    assert run.nfe == sum(counters)


def test_a_job_takes_a_damaged_record_for_none(tmp_path) -> None:
    folder = made_up_run(tmp_path)
    job = Job((), folder, {})
    assert job.finished
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "seconds": "many"}))
    assert not job.finished
    assert job.record == {}
