"""Damage to a run's metrics, record and configuration shows, on resuming and in the report."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.report import main
from tasks.engine.records.results import ResultsError
from tasks.engine.report import read_runs
from tests.support import damaged, fake

Lines = list[bytes]


def changed(lines: Lines) -> Lines:
    return [*lines[:3], lines[3].replace(b'"nfe_forward": ', b'"nfe_forward": 1'), *lines[4:]]


DAMAGE: dict[str, Callable[[Lines], Lines]] = {
    "missing": lambda lines: [*lines[:3], *lines[4:]],
    "changed": changed,
    "twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "cut": lambda lines: lines[:4],
    "cut within a line": lambda lines: [*lines[:4], lines[4][:20]],
    "garbage": lambda lines: [*lines[:3], b"\x80\x00" * (len(lines[3]) // 2) + b"\n", *lines[4:]],
    "emptied": lambda lines: [],
}
#: What a file without a digest of its metrics cannot tell.
UNTOLD = ("changed", "swapped")


def damage(path: Path, what: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(DAMAGE[what](lines)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run that was stopped, and that of one that was not."""
    root = tmp_path_factory.mktemp("runs")
    changes = damaged.settings()
    fake.train(root / "whole", **changes)
    stopped = damaged.stopped(root / "stopped", **changes)
    return stopped, fake.folder(root / "whole", **changes)


@pytest.fixture
def stopped(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    folder = fake.folder(tmp_path, **damaged.settings())
    shutil.copytree(runs[0], folder)
    return folder


@pytest.fixture
def finished(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A finished run beside another, which stays as it is."""
    shutil.copytree(runs[1], tmp_path / "other")
    rewrite(tmp_path / "other", seed=7)
    folder = fake.folder(tmp_path, **damaged.settings())
    shutil.copytree(runs[1], folder)
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    """Change ``run.json`` and take its seal off."""
    path = folder / "run.json"
    record = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("seal", "files")}
    path.write_text(json.dumps({**record, **changes}))


# An unsealed checkpoint does not tell of all.
TOLD = [(w, sealed) for w in DAMAGE for sealed in (True, False) if sealed or w not in UNTOLD]


@pytest.mark.parametrize(("what", "sealed"), TOLD)
def test_damaged_metrics_are_not_taken_up(stopped, tmp_path, what, sealed) -> None:
    if not sealed:
        damaged.as_before_seals(stopped)
    damage(stopped / "metrics.jsonl", what)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(ResultsError, match=r"metrics\.jsonl .*was edited or damaged\. Restore it"):
        fake.train(tmp_path, **damaged.settings())
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_rows_after_the_checkpoint_do_not_matter(stopped, tmp_path, runs) -> None:
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "sp')
    fake.train(tmp_path, **damaged.settings())
    assert fake.rows(stopped) == fake.rows(runs[1])
    assert len(read_runs(tmp_path)[0]) == 1


@pytest.mark.parametrize("what", list(DAMAGE))
def test_damaged_metrics_are_left_out_of_the_report(finished, tmp_path, what) -> None:
    damage(finished / "metrics.jsonl", what)
    (other,), (left,) = read_runs(tmp_path)
    assert (other.path, left.path) == (tmp_path / "other", finished)
    assert left.reason.startswith("metrics.jsonl")


def test_the_report_says_what_it_leaves_out(finished, tmp_path, capsys) -> None:
    damage(finished / "metrics.jsonl", "missing")
    assert main([str(tmp_path)]) == 0  # the other run is in it
    printed = capsys.readouterr().out
    assert f"left out {finished.relative_to(tmp_path)}: metrics.jsonl" in printed


@pytest.mark.parametrize("old", ["max_steps: 12", "lr: 0.01", "name: adam", "seed: 0"])
def test_a_changed_configuration_is_left_out_of_the_report(finished, tmp_path, old) -> None:
    path = finished / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, f"{old}1"))
    (left,) = read_runs(tmp_path)[1]
    assert (left.path, left.reason[:23]) == (finished, "config.yaml was changed")


FIELDS = ("task", "model", "optim", "seed", "config_hash")
WRONG: dict[str, Any] = {
    **dict.fromkeys(("task", "model", "optim", "config_hash", "outcome", "metric"), 1),
    **dict.fromkeys(("seed", "steps", "seconds"), -1),
    **dict.fromkeys(("buckets", "final", "environment", "provenance"), 3),
    "higher_is_better": "yes",
}


@pytest.mark.parametrize(
    ("field", "value"), [*((key, ...) for key in FIELDS), *WRONG.items(), ("outcome", "complete")]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_without_its_fields(finished, tmp_path, field, value, sealed) -> None:
    path = finished / "run.json"
    if not sealed:
        rewrite(finished)
    record = json.loads(path.read_text())
    if value is ...:
        del record[field]
    else:
        record[field] = value
    path.write_text(json.dumps(record))
    (left,) = read_runs(tmp_path)[1]
    assert left.path == finished
    assert "run.json" in left.reason
    assert field in left.reason or sealed
    with pytest.raises(ResultsError, match=r"run\.json .*Restore it from a copy"):
        fake.train(tmp_path, **damaged.settings())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "[" * 100_000, "\x00"])
def test_a_record_that_is_none(finished, tmp_path, content) -> None:
    (finished / "run.json").write_text(content)
    assert [left.path for left in read_runs(tmp_path)[1]] == [finished]
    with pytest.raises(ResultsError, match=r"run\.json .*Restore it from a copy"):
        fake.train(tmp_path, **damaged.settings())


def test_without_its_record_a_finished_run_writes_it_again(finished, tmp_path, runs) -> None:
    (finished / "run.json").unlink()
    assert fake.train(tmp_path, **damaged.settings())["outcome"] == "completed"
    assert fake.rows(finished) == fake.rows(runs[1])
    assert not read_runs(tmp_path)[1]


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_a_turned_bit_never_passes_for_a_result(runs, tmp_path, name) -> None:
    turned_bits(runs, tmp_path, name, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_three_hundred_turned_bits(runs, tmp_path, name) -> None:
    turned_bits(runs, tmp_path, name, 300)


def turned_bits(runs: Any, tmp_path: Path, name: str, count: int) -> None:
    draw, folder = random.Random(name), tmp_path / "run"
    shutil.copytree(runs[1], folder)
    content = (folder / name).read_bytes()
    for _ in range(count):
        damaged_bytes = damaged.flipped(content, draw)
        (folder / name).write_bytes(damaged_bytes)
        found, skipped = read_runs(tmp_path, partial=True)
        if name == "run.json" and not skipped:  # white space, or a key that nothing is read from
            (run,) = found
            record = json.loads(damaged_bytes)
            assert record == json.loads(content) or "seal" not in record
            assert run.steps == 12
        else:
            assert [left.path for left in skipped] == [folder]


def test_files_from_before_there_were_seals_are_read(finished, tmp_path) -> None:
    sealed = read_runs(tmp_path)[0]
    damaged.as_before_seals(finished)
    found, skipped = read_runs(tmp_path)
    assert not skipped
    for one, other in zip(found, sealed, strict=True):
        assert one.curves.keys() == other.curves.keys()
        assert (one.seed, one.steps, one.outcome) == (other.seed, other.steps, other.outcome)
    assert fake.train(tmp_path, **damaged.settings())["outcome"] == "completed"
