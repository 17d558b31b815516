"""A real offline run, read back from wandb's own file; and wandb failing."""

import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.records import wandb_log
from tests.support import fake

LOGGER = {
    "name": "wandb",
    "project": "snopt",
    "entity": None,
    "group": None,
    "tags": [],
    "mode": None,
}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))


def records(file: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: a LevelDB log with a header of 7 bytes."""
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    block, position, parts = 32768, 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:  # no room for a header: padding up to the next block
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):  # still being written
            return
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


def history(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The logged history and the summary in a ``.wandb`` file, once its writer is through."""
    from wandb.proto.wandb_internal_pb2 import Record

    patience = time.monotonic() + 30.0
    while True:  # wandb's own process writes on for a moment after finish() has returned
        parsed = [Record.FromString(data) for data in records(file)]
        if parsed and parsed[-1].WhichOneof("record_type") == "exit":
            break
        assert time.monotonic() < patience, "wandb never finished its file"
        time.sleep(0.1)
    logged: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for record in parsed:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            logged.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
        elif kind == "summary":
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
    return logged, summary


def test_offline_history_is_what_the_metrics_say(tmp_path) -> None:
    summary = fake.train(tmp_path, logger=LOGGER)
    folder = fake.folder(tmp_path)
    (file,) = folder.rglob("*.wandb")
    logged, totals = history(file)
    ours: dict[int, dict[str, float]] = {}
    for row in fake.rows(folder):
        ours.setdefault(row["step"], {})[f"{row['split']}/{row['metric']}"] = row["value"]
    theirs = {
        entry["_step"]: {key: value for key, value in entry.items() if "/" in key}
        for entry in logged
    }
    assert theirs == ours
    assert [entry["nfe_forward"] for entry in logged] == list(range(21))
    assert totals["outcome"] == summary["outcome"] == "completed"


def test_wandb_is_off_the_training_clock(tmp_path, monkeypatch) -> None:
    real = wandb_log.WandbLog.append

    def slow(self, rows) -> None:
        time.sleep(0.02)
        real(self, rows)

    monkeypatch.setattr(wandb_log.WandbLog, "append", slow)
    summary = fake.train(tmp_path, logger={**LOGGER, "mode": "disabled"})
    assert summary["buckets"]["logging"] >= 20 * 0.02  # and no other: the buckets are disjoint


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_failing_wandb_does_not_end_the_run(tmp_path, monkeypatch, caplog, broken) -> None:
    import wandb

    class Run:
        summary: dict[str, Any] = {}  # noqa: RUF012 - one run a test

        def define_metric(self, *_, **__) -> None: ...

        def log(self, *_, **__) -> None:
            if broken == "log":
                raise ConnectionError("no route to host")

        def finish(self, **_) -> None:
            if broken == "finish":
                raise ConnectionError("no route to host")

    def init(**_) -> Run:
        if broken == "init":
            raise ConnectionError("no route to host")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        summary = fake.train(tmp_path, logger=LOGGER)
    assert summary["outcome"] == "completed"
    said = [r.getMessage() for r in caplog.records if "wandb" in r.getMessage()]
    assert said == ["wandb is left out from here on: no route to host"]


@pytest.mark.parametrize(
    ("environment", "configured", "expected"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, None, "online"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "disabled"}, None, "disabled"),
        ({"WANDB_MODE": "disabled"}, "offline", "offline"),
    ],
)
def test_mode(tmp_path, monkeypatch, environment, configured, expected) -> None:
    import wandb

    modes: list[str] = []

    def init(**keywords) -> None:
        modes.append(keywords["mode"])
        raise ConnectionError

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb, "init", init)
    fake.train(tmp_path, logger={**LOGGER, "mode": configured})
    assert modes == [expected]
