"""Settings found at one length say so, and a run of another length that uses them warns."""

from __future__ import annotations

import re

import pytest
import yaml

from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.config.tuned_for import TunedFor
from tests.support import fake
from tests.support.composed import read


@pytest.mark.parametrize(
    ("found", "steps", "seconds", "expected"),
    [
        ({}, 10_000, 60.0, None),  # files from before say nothing
        ({"steps": 95}, 150, None, None),
        ({"steps": 95}, 4690, None, "more than twice"),
        ({"steps": 95}, 20, None, "less than half"),
        ({"steps": 95}, 4690, 60.0, None),  # which of its limits comes first is not known
        ({"steps": 95}, 20, 60.0, "less than half"),
        ({"steps": 95}, None, 60.0, None),
        ({"steps": 95, "seconds": 40.0}, 4690, 60.0, None),  # the seconds end it
        ({"steps": 95, "seconds": 40.0}, 4690, 90.0, "more than twice"),
        ({"steps": 95, "seconds": 40.0}, 4690, 10.0, "less than half"),
        ({"steps": 95, "seconds": 40.0}, 4690, None, "more than twice"),
        ({"seconds": 40.0}, None, 90.0, "more than twice"),
        ({"seconds": 40.0}, 4690, None, None),
    ],
)
def test_which_lengths_are_another(found, steps, seconds, expected) -> None:
    sentence = TunedFor(**found).other_length(steps, seconds)
    assert (sentence is None) == (expected is None)
    if expected is not None:
        assert expected in sentence
        assert "python -m scripts.tune" in sentence
        assert "tuned=none" in sentence


def test_seconds_of_the_other_clock_do_not_compare() -> None:
    found = TunedFor(seconds=40.0, clock="cpu")
    assert found.other_length(None, 90.0, "wall") is None
    assert "more than twice" in found.other_length(None, 90.0, "cpu")
    steps = TunedFor(seconds=40.0, clock="cpu", steps=95)
    assert steps.other_length(4690, 60.0, "wall") is None
    assert "less than half" in steps.other_length(20, 60.0, "wall")


@pytest.mark.parametrize(("steps", "warns"), [(5, False), (20, True)])
def test_a_run_of_another_length_warns_once(steps, warns, tmp_path, caplog) -> None:
    fake.train(tmp_path, train={"max_steps": steps}, tuned_for={"steps": 5})
    warnings = [one.getMessage() for one in caplog.records if "tuned" in one.getMessage()]
    assert len(warnings) == warns
    if warns:
        assert "found in runs of 5 steps, and it is more than twice as long" in warnings[0]


def test_it_is_no_part_of_a_run_s_identity(tmp_path) -> None:
    config = fake.config(tmp_path)
    assert config_hash({**config, "tuned_for": {"steps": 5}}) == config_hash(config)


def test_a_length_is_positive(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"tuned_for\.steps=0: must be at least 1"):
        Settings.read(fake.config(tmp_path, tuned_for={"steps": 0}))


def test_a_tuned_file_applies_unless_told_otherwise(tmp_path) -> None:
    path = tmp_path / "tuned" / "mnist" / "adamw.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptim:\n  lr: 0.0123\ntuned_for:\n  steps: 95\n")
    searched = ["task=mnist", "optim=adamw", f"hydra.searchpath=[file://{tmp_path}]"]
    for overrides, lr, steps in (
        (searched, 0.0123, 95),
        ([*searched, "optim.lr=0.5"], 0.5, 95),
        ([*searched, "tuned=none"], 1e-3, None),
        (searched[:2], 1e-3, None),
    ):
        settings = read(*overrides)
        assert (settings.config["optim"]["lr"], settings.tuned_for.steps) == (lr, steps)


def test_no_optimizer_has_tuned_defaults() -> None:
    # Short searches by training loss favoured whoever was searched hardest.
    assert [path.name for path in (composing.CONF / "tuned").rglob("*.yaml")] == ["none.yaml"]


HISTORY = composing.CONF.parent / "results/reference/history"
EARLIER = sorted(HISTORY.glob("tuned/*/*.yaml"))


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_earlier_settings_apply_by_the_command_of_their_page(path) -> None:
    text, found = path.read_text(), yaml.safe_load(path.read_text())
    said = re.search(r"^# \d+ trials of (\d+) steps", text, re.MULTILINE)
    assert found["tuned_for"] == {"steps": int(said[1])}
    place = [f"task={path.parent.name}", f"optim={path.stem}"]
    config = read(*place, f"hydra.searchpath=[file://{HISTORY}]").config
    assert found == {part: {key: config[part][key] for key in found[part]} for part in found}
