"""Data that runs of one process share: loaded once, changed by none."""

import pytest

from tasks.engine.config.settings import Settings
from tasks.engine.experiment import train
from tasks.engine.training.dataset_cache import DatasetCache
from tests.support import fake


@pytest.fixture
def loads(monkeypatch):
    seeds = []
    load = fake.Rings.load

    def counted(self, root, seed, device, dtype):
        seeds.append(seed)
        return load(self, root, seed, device, dtype)

    monkeypatch.setattr(fake.Rings, "load", counted)
    return seeds


def final(root, cache, **changes):
    changes = {"train": {"max_steps": 6}, **changes}
    return train(Settings.read(fake.config(root, **changes)), cache)["final"]


def test_runs_on_a_shelf_equal_runs_on_their_own(tmp_path, loads) -> None:
    cache = DatasetCache()
    failing = {"_target_": "tests.support.fake.Rings", "name": "rings", "fail_at": [3]}
    rest = {"task": failing, "solver": {"on_failure": "skip_step"}}
    together = [final(tmp_path / str(i), cache, **rest) for i in range(2)]
    assert loads == [0]
    alone = final(tmp_path / "alone", None, **rest)
    assert together == [alone, alone]


def test_another_seed_or_task_is_loaded_again(tmp_path, loads) -> None:
    cache = DatasetCache()
    final(tmp_path, cache)
    final(tmp_path, cache, seed=1)
    larger = {"_target_": "tests.support.fake.Rings", "name": "rings", "samples": 50}
    final(tmp_path, cache, seed=1, task=larger)
    final(tmp_path, cache, seed=1, task=larger, optim={"lr": 0.5})
    assert loads == [0, 1, 1]
