"""Settings found at one length say so, and a run of another length that uses them warns."""

from __future__ import annotations

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir

from tasks.common.checks import ConfigError
from tasks.engine import cli
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.config.tuned_for import TunedFor
from tests.support import fake


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


def test_every_tuned_file_says_its_length() -> None:
    for path in sorted((cli.CONF / "tuned").glob("*/*.yaml")):
        text = path.read_text()
        length = TunedFor.read("tuned_for", yaml.safe_load(text)["tuned_for"])
        steps = re.search(r"^# \d+ trials of (\d+) steps", text, re.MULTILINE)
        assert length == TunedFor(steps=int(steps[1])) if steps else length.seconds


def test_the_tuned_file_of_a_run_is_heard_of() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF)):
        for tuned, steps in (([], 95), (["tuned=none"], None)):
            config = compose("config", overrides=["task=mnist", "optim=snopt", *tuned])
            settings = Settings.read(cli.plain(config))
            assert settings.tuned_for.steps == steps
