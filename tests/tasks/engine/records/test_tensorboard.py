"""A real run, read back from TensorBoard's own file."""

import json

import pytest

from tasks.common.checks import ConfigError
from tests.support import fake

LOGGER = {"name": "tensorboard"}


def test_events_are_what_the_metrics_say(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fake.train(tmp_path, logger=LOGGER)
    folder = fake.folder(tmp_path)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    ours: dict[str, dict[int, float]] = {}
    clock: dict[int, float] = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        ours.setdefault(f"{row['split']}/{row['metric']}", {})[row["step"]] = row["value"]
        if row["metric"] == "batch_loss":
            clock[row["step"]] = row["seconds"]
    assert set(events.Tags()["scalars"]) == set(ours)
    for tag, values in ours.items():
        theirs = {event.step: event.value for event in events.Scalars(tag)}
        assert theirs == pytest.approx(values, rel=1e-6), tag
    loss = events.Scalars("train/batch_loss")
    spent = loss[-1].wall_time - loss[0].wall_time
    trained = clock[loss[-1].step] - clock[loss[0].step]
    assert spent == pytest.approx(trained, abs=1e-5)  # the training clock's
    assert "outcome/text_summary" in events.Tags()["tensors"]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tasks.engine.records.tensorboard_log import TensorBoardLog

    def rows(step: int, value: float) -> list:
        place = {"step": step, "epoch": 0, "split": "train", "metric": "loss", "value": value}
        return [{**place, "seconds": 0.1 * step}]

    ended = {"outcome": "completed", "message": ""}
    for steps, value in ((range(5), 1.0), (range(3, 6), 2.0)):
        log = TensorBoardLog(tmp_path, {})
        for step in steps:
            log.append(rows(step, value))
        log.finish(ended)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tasks.engine.records.tensorboard_log.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard, or choose logger=local"):
        fake.train(tmp_path, logger=LOGGER)
    assert not fake.folder(tmp_path).exists()
