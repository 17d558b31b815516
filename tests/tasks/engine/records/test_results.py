import errno
import json
import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tasks.common.files import atomic_write
from tasks.engine.config.identity import config_hash
from tasks.engine.records import checkpoint
from tasks.engine.records.metrics import Measurement, finite
from tasks.engine.records.results import ResultsError, RunFolder, wrap_os_error
from tests.support import fake

ROW_KEYS = [
    *("step", "epoch", "split", "metric", "value"),
    *("seconds", "cpu_seconds", "wall", "nfe_forward", "nfe_backward"),
]
RUN_KEYS = "task model optim seed outcome message steps seconds buckets final best environment"


def row(step: int) -> Measurement:
    return Measurement(
        step=step,
        epoch=0,
        split="train",
        metric="loss",
        value=0.5,
        seconds=1.0,
        wall=2.0,
        nfe_forward=3,
        nfe_backward=4,
    )


def test_files_of_a_run_are_the_contract(tmp_path) -> None:
    summary = fake.train(tmp_path)
    folder = fake.folder(tmp_path)
    assert folder.relative_to(tmp_path).parts[:3] == ("rings", "node", "adam")
    assert folder.name == f"{summary['config_hash']}-s0"
    written = json.loads((folder / "run.json").read_text())
    assert {*RUN_KEYS.split(), "config_hash", "wall"} <= written.keys()
    assert {"config.yaml", "run.json", "metrics.jsonl", "checkpoint.pt"} <= set(os.listdir(folder))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == ROW_KEYS


def test_final_and_best_agree_with_the_rows(tmp_path) -> None:
    summary = fake.train(tmp_path)
    valid = [r for r in fake.rows(fake.folder(tmp_path)) if r["split"] == "valid"]
    accuracy = {r["step"]: r["value"] for r in valid if r["metric"] == "accuracy"}
    assert summary["final"]["valid"]["accuracy"] == accuracy[20]
    assert summary["best"]["valid"] == max(accuracy.values())
    assert accuracy[summary["best"]["step"]] == max(accuracy.values())


def test_finished_run_is_not_run_again(tmp_path) -> None:
    first = fake.train(tmp_path)
    folder = fake.folder(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    second = fake.train(tmp_path)
    assert second["finished"] == first["finished"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 5}, True),
        ({"data": {"root": "elsewhere"}}, True),
        ({"logger": {"name": "wandb"}}, True),
        ({"train": {"max_steps": 21}}, False),
        ({"optim": {"lr": 0.02}}, False),
        ({"solver": {"rtol": 1e-4}}, False),
    ],
)
def test_identity_leaves_out_paths_seed_and_logger(tmp_path, changes, same) -> None:
    base = config_hash(fake.config(tmp_path))
    assert (config_hash(fake.config(tmp_path / "other", **changes)) == base) is same


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    folder.open_metrics(0)
    folder.append([row(1)])
    mark = folder.metrics_mark()
    folder.append([row(2)])
    folder.close()
    folder = RunFolder(tmp_path)
    folder.open_metrics(*mark)
    folder.append([row(3)])
    folder.close()
    steps = [r["step"] for r in fake.rows(tmp_path)]
    assert steps == [1, 3]


def test_rows_without_a_checkpoint_are_dropped_with_a_word(tmp_path, caplog) -> None:
    for count in range(2):
        folder = RunFolder(tmp_path)
        folder.open_metrics(0)
        folder.append([row(1)])
        folder.close()
        assert len(caplog.records) == count
    assert caplog.messages == [f"{tmp_path}: begins anew, as checkpoint.pt is missing"]
    assert len(fake.rows(tmp_path)) == 1


def test_metrics_shorter_than_the_checkpoint_says(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ResultsError, match="shorter than its checkpoint"):
        folder.open_metrics(10)
    folder.close()


def test_one_process_at_a_time(tmp_path) -> None:
    held = RunFolder(tmp_path)
    with pytest.raises(ResultsError, match="another process is training this run"):
        RunFolder(tmp_path)
    held.close()
    RunFolder(tmp_path).close()


def test_values_that_are_not_finite_become_null() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": (2, "x")}}
    assert finite(value) == {"a": None, "b": [None, 1.0], "c": {"d": [2, "x"]}}


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fill_the_disk() -> None:
        with wrap_os_error("write", path), atomic_write(path) as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResultsError, match=r"file: No space left on device.*intact"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_is_written_whole_with_the_rights_of_a_new_one(tmp_path) -> None:
    path = tmp_path / "new" / "file"
    with suppress(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == []
    with atomic_write(path) as file:
        file.write(b"whole")
    (tmp_path / "other").touch()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert os.listdir(path.parent) == ["file"]


def test_checkpoint_on_a_full_disk(tmp_path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"weight": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a disk that fills up
    try:
        with pytest.raises(ResultsError, match=r"could not write .*checkpoint\.pt: .*[Ff]ile"):
            checkpoint.save(path, {"weight": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    loaded = checkpoint.load(path)
    assert loaded is not None
    assert torch.equal(loaded["weight"], torch.ones(3))
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_run_on_a_full_disk_says_so_and_resumes_later(tmp_path, monkeypatch) -> None:
    changes = {"train": {"checkpoint_every_steps": 5}}
    save = checkpoint.save
    saved: list[Path] = []

    def save_twice(path: Path, state: dict) -> None:
        if len(saved) == 2:
            raise ResultsError(f"could not write {path}: No space left on device")
        saved.append(path)
        save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_twice)
        with pytest.raises(ResultsError, match="No space left"):
            fake.train(tmp_path, **changes)
    folder = fake.folder(tmp_path, **changes)
    assert json.loads((folder / "run.json").read_text())["outcome"] == "error"
    state = checkpoint.load(folder / "checkpoint.pt")
    assert state is not None
    assert state["state"]["step"] == 10
    assert fake.train(tmp_path, **changes)["outcome"] == "completed"
    fake.train(tmp_path / "whole", **changes)
    assert fake.rows(folder) == fake.rows(fake.folder(tmp_path / "whole", **changes))


def test_folder_that_cannot_be_written_to(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"could not create .*Not a directory.*results\.root"):
        fake.train(tmp_path / "file")


def test_checkpoint_that_is_none(tmp_path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path) is None
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ResultsError, match="could not read the checkpoint"):
        checkpoint.load(path)
    torch.save({"format": 0}, path)
    with pytest.raises(ResultsError, match="checkpoint format 0"):
        checkpoint.load(path)
