"""Evaluations on parts of the splits: which part and when, and the whole test split at the end."""

import pytest

from tasks.common.checks import ConfigError
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.training import evaluation
from tasks.engine.training.batches import evenly_spaced
from tests.support import fake


@pytest.fixture
def sizes(monkeypatch):
    seen = []
    evaluate = evaluation.evaluate

    def watched(task, model, data, seed):
        seen.append(len(data[0]))
        return evaluate(task, model, data, seed)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    return seen


@pytest.mark.parametrize("limit", [{"max_steps": 4}, {"max_epochs": 1, "max_steps": None}])
def test_the_last_evaluation_takes_the_whole_test_split(tmp_path, sizes, limit) -> None:
    parts = {"eval_train_samples": 9, "eval_valid_samples": 5, "eval_test_samples": 6}
    record = fake.train(tmp_path, train={"eval_every_steps": 2, **parts, **limit})
    evaluations = list(zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True))
    assert evaluations[:-1] == [(9, 5, 6)] * (len(evaluations) - 1)
    assert evaluations[-1] == (9, 5, 40)
    assert len(evaluations) == record["steps"] // 2 + 1 + record["steps"] % 2


def test_parts_change_nothing_but_what_is_measured(tmp_path) -> None:
    whole = fake.train(tmp_path / "whole")
    part = fake.train(tmp_path / "part", train={"eval_train_samples": 3, "eval_test_samples": 3})
    assert part["final"]["test"] == whole["final"]["test"]
    assert part["final"]["valid"] == whole["final"]["valid"]
    assert part["final"]["train"] != whole["final"]["train"]


def test_splits_that_are_not_asked_for_are_not_measured(tmp_path) -> None:
    record = fake.train(tmp_path, train={"eval_splits": ["train"]})
    assert set(record["final"]) == {"train"}
    assert record["best"] is None
    assert {
        row["split"] for row in fake.rows(fake.folder(tmp_path, train={"eval_splits": ["train"]}))
    } == {"train"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"target": 0.9, "eval_valid_samples": 5}, "target=0.9: is looked for on the whole"),
        ({"target": 0.9, "eval_splits": ["train"]}, "target=0.9: is looked for on the whole"),
        ({"eval_splits": ["tests"]}, "Did you mean test"),
        ({"eval_test_samples": 0}, "eval_test_samples=0: must be at least 1"),
    ],
)
def test_mistakes_are_explained(tmp_path, train, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.read(fake.config(tmp_path, train=train))


def test_defaults_leave_a_runs_identity_as_it_was(tmp_path) -> None:
    before = fake.config(tmp_path)
    same = {"eval_valid_samples": None, "eval_splits": ["train", "valid", "test"]}
    other = {"eval_valid_samples": 10}
    assert config_hash(fake.config(tmp_path, train=same)) == config_hash(before)
    assert config_hash(fake.config(tmp_path, train=other)) != config_hash(before)


def test_a_part_is_spread_over_the_split() -> None:
    import torch

    (part,) = evenly_spaced((torch.arange(10),), 4)
    assert part.tolist() == [0, 2, 5, 7]
