"""Two optimizers that step together equal each on its own part."""

import copy

import pytest
import torch
from torch import nn

import snopt
from tasks.common.checks import ConfigError
from tasks.engine.config.schedule import ScheduleSettings
from tasks.engine.optimizers.build import Schedule, build_optimizer
from tests.support import fake

CONFIG = {
    "_target_": "tasks.engine.optimizers.by_part.ByPart",
    "name": "sgd",
    "field": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9},
    "rest": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    block = snopt.ODEBlock(fake.Field(), (0.0, 1.0), gradient="direct")
    return nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2))


def step(net: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    net.zero_grad()
    net(torch.ones(3, 2)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_each_part_moves_as_with_its_own_optimizer() -> None:
    together, apart = model(), model()
    optimizer = build_optimizer(CONFIG, together)
    sgd = torch.optim.SGD(apart[1].parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.Adam([*apart[0].parameters(), *apart[2].parameters()], lr=0.01)
    for _ in range(3):
        step(together, optimizer)
        step(apart, sgd, adam)
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)


def test_schedule_moves_both_also_after_loading() -> None:
    net = model()
    optimizer = build_optimizer(CONFIG, net)
    schedule = Schedule(optimizer, ScheduleSettings(warmup_steps=1), 1, ends=False)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule.set(0, 0.0)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.005]


def test_state_continues_where_it_was() -> None:
    net = model()
    optimizer = build_optimizer(CONFIG, net)
    step(net, optimizer)
    twin = copy.deepcopy(net)
    continued = build_optimizer(CONFIG, twin)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(net, optimizer)
    step(twin, continued)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_without_a_field_is_all_rest() -> None:
    optimizer = build_optimizer(CONFIG, nn.Linear(2, 2))
    assert [type(part).__name__ for part in optimizer.parts] == ["Adam"]


def test_mistakes_are_explained() -> None:
    whole = {key: value for key, value in CONFIG["field"].items() if key != "_partial_"}
    with pytest.raises(ConfigError):
        build_optimizer({**CONFIG, "field": whole}, model())
    with pytest.raises(ConfigError, match=r"set optim\.field\.lr"):
        build_optimizer({**CONFIG, "field_lr": 0.1}, model())
    with pytest.raises(ConfigError, match="no such key"):
        build_optimizer({**CONFIG, "lr": 0.1}, model())
    with pytest.raises(ConfigError, match=r"optim\.rest: needs a _target_"):
        build_optimizer({**CONFIG, "rest": 3}, model())
