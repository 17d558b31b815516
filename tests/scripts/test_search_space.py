"""What is searched of an optimizer: the same points for all, within the ranges of its file."""

import math

import pytest
from hydra import compose, initialize_config_dir

from scripts import search
from tasks.common.checks import ConfigError
from tasks.engine.config import composing


def test_every_optimizer_gets_the_same_points() -> None:
    drawn = {optim: search.Space.of(optim).draw(8, seed=3) for optim in search.ranges()}
    for points in drawn.values():
        for one, other in zip(points, drawn["sgd"], strict=True):
            for key in search.SCHEDULE:
                assert one.get(key) == other.get(key)
            ratio = other["optim.field_lr"] / other["optim.lr"]
            assert one["optim.field_lr"] / one["optim.lr"] == pytest.approx(ratio, rel=0.02)
    for one, other in zip(drawn["sgd"], drawn["soap"], strict=True):
        assert one["optim.lr"] == pytest.approx(10 * other["optim.lr"], rel=0.02)
    for one, other in zip(drawn["snopt"], drawn["adamw"], strict=True):
        assert one["optim.betas"] == other["optim.betas"]


@pytest.mark.parametrize("optim", search.ranges())
def test_points_fill_the_space_and_stay_in_it(optim) -> None:
    space = search.Space.of(optim)
    drawn = space.draw(16, seed=0)
    rates = [changes["optim.lr"] for changes in drawn]
    assert sum(rate < math.sqrt(space.lr.low * space.lr.high) for rate in rates) == 8
    ratios = [changes["optim.field_lr"] / changes["optim.lr"] for changes in drawn]
    assert all(0.0099 <= ratio <= 1.01 for ratio in ratios)
    for key, values in {**search.SCHEDULE, **space.own, "optim.lr": space.lr}.items():
        found = [changes[key] for changes in drawn if key in changes]
        if isinstance(values, search.Choice):
            if key not in search.OF_COSINE:  # a constant schedule has none
                counts = [found.count(value) for value in values.values]
                assert sum(counts) == 16
                assert max(counts) - min(counts) <= 2
        else:
            assert values.low <= min(found) < max(found) <= values.high


@pytest.mark.parametrize("optim", search.ranges())
def test_every_setting_that_is_searched_composes(optim) -> None:
    space = search.Space.of(optim)
    drawn = space.draw(2, seed=0)
    assert {changes["schedule.name"] for changes in drawn} == {"constant", "cosine"}
    for changes in drawn:
        given = [f"{key}={search.typed(value)}" for key, value in changes.items()]
        with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
            overrides = ["task=digits", f"optim={optim}", *given]
            config = composing.plain(compose("config", overrides=overrides))
        for key, value in changes.items():
            part, _, name = key.partition(".")
            assert config[part][name] == value


def test_settings_that_are_given_are_not_searched() -> None:
    given = {"optim.betas": "[0.8,0.9]", "schedule.warmup": "0", "optim.weight_decay": "0"}
    space = search.Space.of("adamw", given)
    for changes in space.draw(8, seed=0):
        assert changes.keys() - {*search.OF_COSINE} == {
            "optim.lr",
            "optim.field_lr",
            "schedule.name",
        }
    assert "betas" not in str(space)
    assert "lr 0.001..0.1; field_lr / lr 0.01..1;" in str(space)


def test_more_settings_than_points_have_coordinates_are_refused(monkeypatch) -> None:
    rates = search.LogUniform(1e-3, 0.1)
    own = {f"a{number}": rates for number in range(11)}
    monkeypatch.setattr(search, "ranges", lambda: {"adam": {"lr": rates, **own}})
    with pytest.raises(ConfigError, match=r"about\.search: lists 11 settings beside lr.* 10"):
        search.Space.of("adam")


def test_a_closed_range_is_not_widened() -> None:
    whole_step = search.Space.of("snopt_gauss_newton")
    assert whole_step.widened({"optim.lr": 1.0, "optim.damping": 0.03}) == whole_step


def test_optimizer_without_a_range() -> None:
    with pytest.raises(ConfigError, match=r"Choices: .*adamw"):
        search.Space.of("lbfgs")
