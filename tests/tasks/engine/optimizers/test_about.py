"""What the suite knows of an optimizer stands in its file, or in that of somebody else."""

from __future__ import annotations

import pytest

from scripts import search
from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.optimizers.about import About, about, colour, known
from tests.support import fake


def test_every_file_says_it() -> None:
    assert {path.stem for path in (composing.CONF / "optim").glob("*.yaml")} == known().keys()
    first = {name for name, one in known().items() if one.first_order}
    assert first == {"sgd", "sgd_field", "adam", "adamw", "schedulefree"}
    assert (
        len({colour(name, {}) for name in ("sgd", "adam", "adamw", "snopt", "soap", "muon")}) == 6
    )
    assert search.ranges()["adam"]["betas"] == search.ranges()["snopt"]["betas"]


@pytest.mark.parametrize(
    ("name", "config", "first_order"),
    [
        ("adam", {"_target_": "torch.optim.Adam"}, True),  # a run from before files said it
        ("mine", {"_target_": "torch.optim.NAdam"}, True),
        ("mine", {"_target_": "torch.optim.AdamW"}, True),
        ("mine", {"_target_": "package.module.Class"}, False),
        ("mine", {"_target_": "package.module.Class", "about": {"first_order": True}}, True),
        ("adam", {"_target_": "torch.optim.Adam", "about": {"first_order": False}}, False),
    ],
)
def test_whether_it_is_a_baseline(name, config, first_order) -> None:
    assert about(name, config).first_order == first_order


def test_a_colour_of_its_own() -> None:
    assert colour("mine", {"about": {"colour": "#123456"}}) == "#123456"
    assert colour("mine", {}) == colour("mine", {}) != colour("adam", {})


def test_another_key_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"optim\.about: has first_order, colour, search, rates, schedule"
    ):
        About.read({"color": "red"})


def test_it_is_no_part_of_a_run_s_identity(tmp_path) -> None:
    config = fake.config(tmp_path)
    told = {**config, "optim": {**config["optim"], "about": {"colour": "#123456"}}}
    assert config_hash(told) == config_hash(config)
