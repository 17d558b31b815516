"""``task.train_samples``: training on a part of the data, judged on the same as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tasks import dynamics
from tasks.common.checks import ConfigError
from tasks.data.errors import DataError
from tasks.data.splits import stratified_part
from tasks.dynamics import PlaneVibration, Silverbox
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import build_task
from tests.support.task_cases import make

CPU, F64 = torch.device("cpu"), torch.float64
SERIES = (
    "articulary_word_recognition",
    "basic_motions",
    "character_trajectories",
    "japanese_vowels",
    "spoken_arabic_digits",
)
ADDED = (*SERIES, "plane_vibration", "silverbox")


def test_a_part_has_every_class_in_proportion() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 200, 30]))
    split = np.flatnonzero(np.arange(len(labels)) % 3 > 0)
    sizes = np.bincount(labels[split])
    smaller: set[int] = set()
    for count in (3, 10, 50, 200, len(split) - 1, len(split)):
        part = stratified_part(split, labels, count, "toy")
        assert len(part) == count
        assert np.array_equal(part, np.sort(part))  # the split's own order
        assert smaller <= set(part.tolist()) <= set(split.tolist())
        smaller = set(part.tolist())
        found = np.bincount(labels[part], minlength=3)
        assert found.min() >= 1
        assert np.abs(found - count * sizes / len(split)).max() <= 2
        assert np.array_equal(part, stratified_part(split, labels, count, "toy"))
    assert stratified_part(split, labels, None, "toy") is split
    with pytest.raises(DataError, match=r"toy: train_samples=2 leaves out .* the 3 classes"):
        stratified_part(split, labels, 2, "toy")


def test_fewer_series_to_train_on_and_the_same_to_judge_by(tmp_path: Path) -> None:
    whole, task = make("japanese_vowels"), make("japanese_vowels", train_samples=100)
    every, some = (one.load(tmp_path, 0, CPU, F64) for one in (whole, task))
    assert [len(part[0]) for part in (some.train, some.valid, some.test)] == [100, 96, 96]
    for all_of_it, same in ((every.valid, some.valid), (every.test, some.test)):
        for one, other in zip(all_of_it[1:], same[1:], strict=True):
            assert torch.equal(one, other)
    channels = some.train[0][some.train[1]][:, -12:]  # of observed points
    assert channels.mean(dim=0).abs().max() < 1e-10  # by their own statistics
    assert task.provenance == f"{whole.provenance}; only 100 of 448 training series"
    more = make("japanese_vowels", train_samples=10_000)
    assert len(more.load(tmp_path, 0, CPU, F64).train[0]) == 448
    assert more.provenance == whole.provenance


def test_the_first_windows_of_a_measurement(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    for kind, reader, columns, few in (
        (PlaneVibration, "read_plane_vibration", 5, 7),
        (Silverbox, "read_silverbox", 2, 3),
    ):
        values = rng.normal(size=(5000, columns))
        monkeypatch.setattr(dynamics, reader, lambda root, values=values: values)
        task = kind(train_samples=few)
        every, some = (one.load(tmp_path, 0, CPU, F64) for one in (kind(), task))
        assert len(every.train[0]) > few
        for one, other in zip(every.train, some.train, strict=True):
            assert torch.equal(one[:few], other)
        for one, other in zip(every.valid + every.test, some.valid + some.test, strict=True):
            assert torch.equal(one, other)
        assert task.provenance == f"complete; only the first {few} training windows"


@pytest.mark.parametrize("name", ADDED)
def test_all_of_the_data_is_the_run_that_it_was(name: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=[f"task={name}", "optim=sgd"]))
    task = config["task"]
    assert task["train_samples"] is None
    before = {**config, "task": {k: v for k, v in task.items() if k != "train_samples"}}
    assert config_hash(config) == config_hash(before)
    assert config_hash({**config, "task": {**task, "train_samples": 99}}) != config_hash(before)
    build_task(Settings.read(before))  # an old run's file
    refused = Settings.read({**config, "task": {**task, "train_samples": 0}})
    with pytest.raises(ConfigError, match="train_samples=0: must be an integer, at least 1"):
        build_task(refused)


def test_images_had_it_from_the_beginning() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=["task=mnist", "optim=sgd"]))
    without = {k: v for k, v in config["task"].items() if k != "train_samples"}
    assert config_hash({**config, "task": without}) != config_hash(config)
