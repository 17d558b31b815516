"""What a scheduler or a user writes into a group is in force at the next step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from snopt import LevenbergMarquardt, SNOpt, SNOptPreconditioner
from tests.support import problems
from tests.support.classifiers import Classifier, backward, gauss_newton, series
from tests.support.training import XS, YS, flat, net, train


def closure_of(model: nn.Module, optimizer: SNOpt) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problems.squares(YS)(model(XS))
        loss.backward()
        return loss

    return closure


WRITTEN: dict[str, tuple[dict[str, Any], str, Any]] = {
    "lr": ({}, "lr", 0.5),
    "momentum": ({}, "momentum", 0.7),
    "weight_decay": ({}, "weight_decay", 0.3),
    "damping": ({}, "damping", 0.7),
    "a schedule of damping": ({}, "damping", lambda step: 0.3 + step),
    "damping of kfac": ({"rule": "kfac"}, "damping", 0.7),
    "alpha": ({}, "alpha", 0.1),
    "betas": ({"rule": "adam", "warmup_steps": 0}, "betas", (0.1, 0.2)),
    "betas as a list": ({"rule": "adam", "warmup_steps": 0}, "betas", [0.1, 0.2]),
    "eps": ({"rule": "adam", "warmup_steps": 0}, "eps", 0.1),
    "nesterov": ({"rule": "adam", "warmup_steps": 0}, "nesterov", True),
    "kl_clip": ({"rule": "kfac"}, "kl_clip", 1e-8),
    "trust": ({}, "trust", 1e-6),
}


@pytest.mark.parametrize(("settings", "name", "value"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_before_the_first_step_is_what_was_given(
    settings: dict[str, Any], name: str, value: Any
) -> None:
    written, given, left = net(), net(), net()
    optimizer = SNOpt(written, **{"lr": 0.02, "rule": "paper", **settings})
    optimizer.param_groups[0][name] = value
    train(written, optimizer, 3)
    train(given, SNOpt(given, **{"lr": 0.02, "rule": "paper", **settings, name: value}), 3)
    train(left, SNOpt(left, **{"lr": 0.02, "rule": "paper", **settings}), 3)
    assert torch.equal(flat(written), flat(given))
    assert not torch.equal(flat(written), flat(left))


def test_a_controller_written_into_a_group_adapts() -> None:
    written, given = net(), net()
    controllers = [LevenbergMarquardt(0.05, every=1, decay=0.5) for _ in range(2)]
    first = SNOpt(written, 0.02, rule="paper")
    first.param_groups[0]["damping"] = controllers[0]
    second = SNOpt(given, 0.02, rule="paper", damping=controllers[1])
    for _ in range(3):
        first.step(closure_of(written, first))
        second.step(closure_of(given, second))
    assert torch.equal(flat(written), flat(given))
    assert controllers[0].value == controllers[1].value != 0.05


def test_a_damping_that_was_loaded_is_in_force() -> None:
    model, fresh = net(), net()
    optimizer = SNOpt(model, 0.02, rule="paper", damping=0.7)
    train(model, optimizer, 2)
    other = SNOpt(fresh, 0.02, rule="paper", damping=0.1)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["damping"] == 0.7
    assert torch.equal(train(model, optimizer, 2), train(fresh, other, 2))


def test_functions_stay_where_a_number_is_loaded() -> None:
    schedule, controller = (lambda step: 0.1 / (1 + step)), LevenbergMarquardt(0.3)
    for own in (schedule, controller):
        optimizer = SNOpt(net(), rule="paper", damping=own)
        optimizer.load_state_dict(SNOpt(net(), rule="paper", damping=0.7).state_dict())
        assert optimizer.param_groups[0]["damping"] is own
    assert controller.value == 0.7
    state = SNOpt(net(), rule="paper", damping=schedule).state_dict()
    assert state["param_groups"][0]["damping"] == 0.1
    number = SNOpt(net(), rule="paper", damping=0.7)
    number.load_state_dict(state)
    assert number.param_groups[0]["damping"] == 0.1


# -- momentum and its schedulers ------------------------------------------------------------------


def steps(
    model: nn.Module, optimizer: SNOpt, momenta: list[float] | None, count: int = 4
) -> Tensor:
    for k in range(count):
        if momenta is not None:
            optimizer.param_groups[0]["momentum"] = momenta[k]
        backward(model, optimizer, *series())
        optimizer.step()
    return flat(model)


def test_momentum_of_gauss_newton_is_shown_and_live() -> None:
    optimizer = gauss_newton(Classifier())
    assert optimizer.param_groups[0]["momentum"] == 0.9
    written, given, other = Classifier(), Classifier(), Classifier()
    end = steps(written, gauss_newton(written), [0.3] * 4)
    torch.testing.assert_close(end, steps(given, gauss_newton(given, momentum=0.3), None))
    assert not torch.allclose(end, steps(other, gauss_newton(other), None))


def test_cycled_momentum_of_gauss_newton_is_not_doubled() -> None:
    model, twin = Classifier(), Classifier()
    optimizer = gauss_newton(model, backtrack=float("inf"))
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)
    rates, momenta = [], []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        backward(model, optimizer, *series())
        optimizer.step()
        scheduler.step()
    assert momenta[0] == 0.95 > momenta[-1]
    by_hand = gauss_newton(twin, backtrack=float("inf"))
    for rate, momentum in zip(rates, momenta, strict=True):
        by_hand.param_groups[0]["lr"] = rate
        steps(twin, by_hand, [momentum], 1)
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("rule", ["paper", "adam"])
def test_cycled_momentum_is_that_of_torch(rule: str, scheduler: str) -> None:
    """On parameters without a layer, beside SGD and AdamW under the same scheduler."""
    models = [nn.LayerNorm(4).double() for _ in range(2)]
    x = torch.randn(6, 4, dtype=torch.float64)
    if rule == "paper":
        theirs: Any = torch.optim.SGD(models[1].parameters(), 0.1, momentum=0.9)
        ours = SNOpt(models[0], 0.1, rule="paper", momentum=0.9)
    else:
        theirs = torch.optim.AdamW(models[1].parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.1)
        ours = SNOpt(models[0], 0.1, rule="adam", warmup_steps=0, cautious=False)
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        cycle = (
            lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=12)
            if scheduler == "OneCycleLR"
            else lr_scheduler.CyclicLR(optimizer, 0.1, 0.3, step_size_up=3)
        )
        for _ in range(8):
            optimizer.zero_grad()
            model(x).sin().sum().backward()
            optimizer.step()
            cycle.step()
    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-9, atol=1e-11)


def test_states_from_before_momentum_was_shown_keep_it() -> None:
    model, twin = Classifier(), Classifier()
    optimizer = gauss_newton(model)
    steps(model, optimizer, None, 2)
    state = optimizer.state_dict()
    del state["rule"]
    state["param_groups"][0]["momentum"] = 0.0
    fresh = gauss_newton(twin)
    twin.load_state_dict(model.state_dict())
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["momentum"] == 0.9
    assert torch.equal(steps(model, optimizer, None, 2), steps(twin, fresh, None, 2))


# -- kinds of numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, torch.tensor, lambda x: torch.tensor([x])]
)
def test_numbers_of_numpy_and_torch(kind: Any) -> None:
    model, plain = net(), net()
    optimizer = SNOpt(model, kind(0.5), damping=kind(0.25), rule="paper", momentum=kind(0.5))
    assert torch.equal(
        train(model, optimizer, 2),
        train(plain, SNOpt(plain, 0.5, rule="paper", damping=0.25, momentum=0.5), 2),
    )
    adam = SNOpt(net(), rule="adam", betas=(kind(0.5), kind(0.25)), refresh_every=np.int64(3))
    train(net(), adam, 1)
    assert adam.state_dict()["param_groups"][0]["betas"] == (0.5, 0.25)


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    rate = torch.tensor(0.5)
    model, plain = net(), net()
    optimizer, by_hand = SNOpt(model, rate, rule="paper"), SNOpt(plain, 0.5, rule="paper")
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        train(model, optimizer, 1)
        train(plain, by_hand, 1)
        scheduler.step()
        by_hand.param_groups[0]["lr"] *= 0.5
    assert torch.equal(flat(model), flat(plain))
    other = SNOpt(net(), torch.tensor(0.1), rule="paper")
    other.load_state_dict(optimizer.state_dict())
    assert isinstance(other.param_groups[0]["lr"], Tensor)
    assert float(other.param_groups[0]["lr"]) == 0.0625


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "0.1"),
        ("lr", None),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("betas", (0.9, 1.0)),
        ("kl_clip", -1.0),
        ("damping", "x"),
        ("fallback", "sgd"),
        ("nesterov", "no"),
    ],
)
def test_what_cannot_be_is_named_at_the_step(name: str, value: Any) -> None:
    model = net()
    optimizer = SNOpt(model, rule="adam")
    optimizer.param_groups[0]["lr"] = -1e-19  # a schedule's rounding
    train(model, optimizer, 1)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [("adam", "refresh_every", 5), ("adam", "cautious", False), ("gauss_newton", "memory", 1.0)],
)
def test_what_is_one_for_all_groups_is_told(rule: str, name: str, value: Any) -> None:
    model = net()
    optimizer = SNOpt(model, rule=rule)
    optimizer.param_groups[0][name] = value
    optimizer.param_groups[0]["note"] = "the user's own"
    with pytest.raises(ValueError, match=f"{name} was set.*an argument of SNOpt"):
        train(model, optimizer, 1)


def test_what_cannot_be_changed_says_so() -> None:
    model = net()
    optimizer = SNOpt(model, rule="paper")
    optimizer.param_groups[0]["precondition"] = "ode"
    with pytest.raises(ValueError, match="precondition was changed"):
        train(model, optimizer, 1)
    optimizer = SNOpt([{"params": model[0]}, {"params": model}], rule="paper")
    optimizer.param_groups.pop()
    with pytest.raises(ValueError, match=r"made with 2 parameter groups and has 1.*requires_grad_"):
        train(model, optimizer, 1)


# -- groups that are added ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"rule": "paper"}, {"rule": "adam", "basis": "gradient"}, {"rule": "kfac"}]
)
def test_an_added_group_trains_as_one_that_was_there(settings: dict[str, Any]) -> None:
    ends = []
    for later in (False, True):
        model = net()
        groups = [{"params": model[:2]}, {"params": model[2:], "lr": 0.01, "weight_decay": 0.1}]
        optimizer = SNOpt(groups[:1] if later else groups, 0.02, **settings)
        if later:
            optimizer.add_param_group(groups[1])
        assert len(optimizer.coverage().preconditioned) == len(list(model.parameters()))
        ends.append(train(model, optimizer, 4))
        assert optimizer.param_groups[1]["lr"] == 0.01
        again = SNOpt(groups, 0.02, **settings)
        again.load_state_dict(optimizer.state_dict())
    assert torch.equal(*ends)


def test_groups_that_cannot_be_added() -> None:
    model = net()
    optimizer = SNOpt(model, rule="paper")
    with pytest.raises(ValueError, match="in a group already"):
        optimizer.add_param_group({"params": model[0]})
    with pytest.raises(TypeError, match="needs modules"):
        optimizer.add_param_group({"params": list(nn.Linear(2, 2).parameters())})
    with pytest.raises(ValueError, match="did you mean 'lr'"):
        optimizer.add_param_group({"params": nn.Linear(2, 2), "learning_rate": 0.1})
    assert len(optimizer.param_groups) == 1
    whole = gauss_newton(Classifier())
    groups, state = len(whole.param_groups), len(whole.state)
    with pytest.raises(ValueError, match=r"^rule='gauss_newton' takes no more groups: build"):
        whole.add_param_group({"params": nn.Linear(2, 2)})
    assert (len(whole.param_groups), len(whole.state)) == (groups, state)


def test_a_controller_in_a_group_of_the_preconditioner_alone() -> None:
    with pytest.raises(TypeError, match="closure"):
        SNOptPreconditioner([{"params": net(), "damping": LevenbergMarquardt()}], rule="paper")
