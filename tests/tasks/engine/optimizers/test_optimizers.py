import math

import pytest
import torch
from torch import nn

import snopt
from tasks.common.checks import ConfigError
from tasks.engine.config.schedule import ScheduleSettings
from tasks.engine.optimizers.build import (
    Schedule,
    build_optimizer,
    factor,
    needs_closure,
    ode_fields,
)
from tests.support import fake

SGD = {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.1}


def model() -> nn.Sequential:
    block = snopt.ODEBlock(fake.Field(), (0.0, 1.0))
    return nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2))


def test_one_group_without_field_lr() -> None:
    optimizer = build_optimizer(SGD, model())
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]


def test_fields_are_a_group_of_their_own() -> None:
    net = model()
    optimizer = build_optimizer({**SGD, "field_lr": 0.01}, net)
    fields, others = optimizer.param_groups
    assert (fields["lr"], others["lr"]) == (0.01, 0.1)
    assert {id(p) for p in fields["params"]} == {id(p) for p in net[1].parameters()}
    assert len(others["params"]) == 4
    assert list(ode_fields(net)) == ["1.field"]


def test_parameters_that_do_not_train_are_left_out() -> None:
    net = model()
    net[0].requires_grad_(False)
    assert len(build_optimizer(SGD, net).param_groups[0]["params"]) == 4


def test_field_lr_needs_a_field() -> None:
    with pytest.raises(ConfigError, match=r"no ODE field\. Set optim\.field_lr=null"):
        build_optimizer({**SGD, "field_lr": 0.01}, nn.Linear(2, 2))


class TakesModel(torch.optim.SGD):
    """Takes a module or groups of modules, as SNOpt does."""

    def __init__(self, model, lr: float = 0.1) -> None:
        self.given = model
        super().__init__([nn.Parameter(torch.zeros(1))], lr=lr)


def test_modules_for_those_that_take_a_model() -> None:
    net = model()
    config = {"_target_": f"{__name__}.TakesModel", "lr": 0.1}
    assert build_optimizer(config, net).given is net
    groups = build_optimizer({**config, "field_lr": 0.01}, net).given
    assert groups == [{"params": {"1.field": net[1].field}, "lr": 0.01}, {"params": net}]


def test_nested_targets_are_built() -> None:
    nested = {"_target_": "builtins.dict", "key": 1}
    with pytest.raises(ConfigError, match=r"optim\.momentum\._target_: cannot be called"):
        build_optimizer({**SGD, "momentum": nested}, model())
    nested = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0}
    with pytest.raises(ConfigError, match=r"SGD refuses its settings"):
        build_optimizer({**SGD, "momentum": nested}, model())


def test_settings_that_break_the_optimizer_are_named() -> None:
    short = {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9]}
    with pytest.raises(ConfigError, match=r"optim\.betas=\[0\.9\]: expected tuple\[float, float\]"):
        build_optimizer(short, model())


def test_only_lbfgs_needs_a_closure() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    assert needs_closure(torch.optim.LBFGS(parameters))
    assert not needs_closure(torch.optim.AdamW(parameters))


def factors(steps: int, total: int | None = 10, per_epoch: int = 2, **settings) -> list[float]:
    schedule = ScheduleSettings(**settings)
    done = [None if total is None else min(1.0, s / total) for s in range(steps)]
    return [factor(schedule, s, d, per_epoch) for s, d in enumerate(done)]


def test_constant() -> None:
    assert factors(3) == [1.0, 1.0, 1.0]


def test_warmup_rises_to_the_learning_rate() -> None:
    assert factors(5, warmup_steps=3) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_and_cosine_end_at_the_final_factor() -> None:
    linear = factors(11, name="linear", final_factor=0.5)
    assert linear == pytest.approx([1.0 - 0.05 * s for s in range(11)])
    cosine = factors(12, name="cosine")
    expected = [0.5 * (1 + math.cos(math.pi * min(s, 10) / 10)) for s in range(12)]
    assert cosine == pytest.approx(expected)


def test_horizon_of_its_own() -> None:
    assert factors(6, name="linear", total_steps=5)[-1] == 0.0


def test_an_end_as_a_share_of_the_run() -> None:
    course = factors(21, total=20, name="linear", warmup=0.2, end=0.5, final_factor=0.1)
    assert course[:5] == pytest.approx([0.1, 0.25, 0.5, 0.75, 1.0])
    assert course[4:11] == pytest.approx([1 - 0.9 * s / 6 for s in range(7)])
    assert course[10:] == pytest.approx([0.1] * 11)
    half = factors(11, total=20, name="cosine", warmup=0.05, end=0.5)
    assert half == pytest.approx(factors(11, total=10, name="cosine", warmup=0.1))
    for wrong in ({"end": 0.0}, {"end": 1.1}, {"end": 0.2, "warmup": 0.2}):
        with pytest.raises(ValueError, match="end="):
            ScheduleSettings(**wrong)
    with pytest.raises(ValueError, match="not beside total_steps"):
        ScheduleSettings(end=0.5, total_steps=10)


def test_warmup_then_cosine_is_continuous_and_falls() -> None:
    course = factors(10, name="cosine", warmup_steps=4)
    assert course[4] == max(course) == 1.0
    assert course[4:] == sorted(course[4:], reverse=True)


def test_multistep_counts_epochs() -> None:
    course = factors(8, name="multistep", milestones=(1, 3), gamma=0.1)
    assert course == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": (10, 20)}, r"milestones=\[10, 20\]: is of name=multistep"),
        ({"name": "cosine", "gamma": 0.1}, r"gamma=0\.1: is of name=multistep"),
        ({"name": "multistep"}, r"milestones=\[\]: multistep falls at these epochs"),
        ({"end": 0.5}, r"end=0\.5: is of name=linear and name=cosine"),
        ({"warmup": 0.1, "final_factor": 0.1}, r"final_factor=0\.1: is of name=linear"),
        ({"total_steps": 10}, r"total_steps=10: is of name=linear and name=cosine"),
    ],
)
def test_settings_of_another_schedule_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**settings)


def test_warmup_as_a_share_of_the_run() -> None:
    course = factors(21, total=20, name="linear", warmup=0.2)
    assert course[:5] == pytest.approx([0.1, 0.25, 0.5, 0.75, 1.0])
    assert course[4:] == pytest.approx([1 - s / 16 for s in range(17)])
    assert factors(3, total=4, warmup=0.5) == pytest.approx([0.1, 0.5, 1.0])
    steps = factors(4, total=4, name="multistep", milestones=(1,), gamma=0.1, warmup=0.5)
    assert steps == pytest.approx([0.1, 0.5, 0.1, 0.1])
    for wrong in ({"warmup": 1.0}, {"warmup": 0.1, "warmup_steps": 2}):
        with pytest.raises(ValueError, match="warmup="):
            ScheduleSettings(**wrong)


def test_course_by_the_clock() -> None:
    """As many steps as there is time for, at an uneven pace: the clock alone counts."""
    schedule = ScheduleSettings(name="cosine", final_factor=0.1)
    for done in (0.0, 0.3, 1.0):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        assert factor(schedule, 7, done, 1) == pytest.approx(expected)


def test_schedule_follows_the_clock_in_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Recording, "seen", [])
    optim = {"_target_": f"{__name__}.Recording", "name": "recording", "lr": 1.0}
    train = {"max_epochs": 100000, "max_seconds": 0.5}
    fake.train(tmp_path, optim=optim, train=train, schedule={"name": "linear"})
    _, _, *course = Recording.seen  # after two steps that try the settings
    assert course == sorted(course, reverse=True)
    assert course[0] > 0.9
    assert course[-1] < 0.1


def test_schedule_without_an_end() -> None:
    with pytest.raises(ConfigError, match=r"Set schedule\.total_steps"):
        factors(1, total=None, name="cosine")


def test_schedule_moves_every_group() -> None:
    optimizer = build_optimizer({**SGD, "field_lr": 0.01}, model())
    schedule = Schedule(optimizer, ScheduleSettings(name="linear"), per_epoch=1)
    seen = []
    for step in range(4):
        schedule.set(step, step / 4)
        seen.append([group["lr"] for group in optimizer.param_groups])
    scales = (1.0, 0.75, 0.5, 0.25)
    assert seen == [pytest.approx([0.01 * scale, 0.1 * scale]) for scale in scales]


class Recording(torch.optim.SGD):
    seen: list[float] = []  # noqa: RUF012 - what the last run saw

    def step(self, closure=None):
        self.seen.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_schedule_is_stepped_in_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Recording, "seen", [])
    optim = {"_target_": f"{__name__}.Recording", "name": "recording", "lr": 1.0}
    fake.train(tmp_path, optim=optim, schedule={"name": "linear", "warmup_steps": 2})
    expected = factors(20, total=20, name="linear", warmup_steps=2)
    assert Recording.seen[2:] == pytest.approx(expected)
