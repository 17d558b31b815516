"""States that belong to something else are refused in a sentence, and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import SNOpt
from snopt.optim.rules import RULES
from tests.support.training import XS, YS, flat, net

State = dict[str, Any]


def advance(model: nn.Module, optimizer: Any, count: int = 2) -> Tensor:
    x, y = (part.to(next(model.parameters())) for part in (XS, YS))
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(x)
        if isinstance(optimizer, SNOpt):
            optimizer.curvature_pass(outputs, "gaussian")
        ((outputs - y).square().sum(1).mean() / 2).backward()
        optimizer.step()
    return flat(model)


def trained(model: nn.Module, **settings: Any) -> State:
    optimizer = SNOpt(model, 0.03, **{"rule": "paper", **settings})
    advance(model, optimizer)
    return optimizer.state_dict()


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 3), *list(net())[1:2], nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2)
    ).double()


def other_rule(rule: str) -> State:
    return trained(net(), rule="adam" if rule == "paper" else "paper")


def unmarked(rule: str) -> State:
    """As an earlier version saved it, which did not note the rule."""
    state = other_rule(rule)
    del state["rule"]
    return state


def of_torch(rule: str) -> State:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.03)
    advance(model, optimizer)
    return optimizer.state_dict()


def grouped(rule: str) -> State:
    model = net()
    groups = [{"params": model[1], "lr": 0.1}, {"params": model}]
    return SNOpt(groups, rule=rule).state_dict()


def damaged(change: Callable[[State], None]) -> Callable[[str], State]:
    def state(rule: str) -> State:
        found = copy.deepcopy(trained(net(), rule=rule))
        change(found)
        return found

    return state


FOREIGN: dict[str, tuple[Callable[[str], Any], str]] = {
    "nothing": (lambda rule: None, "state_dict"),
    "a list": (lambda rule: [1, 2], "state_dict"),
    "a model's": (lambda rule: net().state_dict(), "state_dict"),
    "torch's": (of_torch, "another optimizer"),
    "another rule's": (other_rule, "rule="),
    "another rule's, unmarked": (unmarked, "rule|damaged"),
    "another width's": (lambda rule: trained(wide(), rule=rule), "another model"),
    "other layers'": (lambda rule: trained(nn.Linear(5, 2).double(), rule=rule), "other param"),
    "other groups'": (grouped, "groups"),
    "a damaged one's": (damaged(lambda s: s["preconditioner"].pop("steps")), "damaged"),
    "one with other settings": (damaged(lambda s: s["param_groups"][0].update(lr=-1.0)), "lr=-1"),
    "one without settings": (damaged(lambda s: s["param_groups"][0].update(betas=1)), "betas=1"),
    "one with a strange name": (damaged(lambda s: s["state"].update(x={})), "damaged"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("make", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_refused_state_changes_nothing(make: Callable[[str], Any], words: str, rule: str) -> None:
    model, twin = net(), net()
    optimizer, other = (SNOpt(m, 0.02, rule=rule) for m in (model, twin))
    advance(model, optimizer)
    advance(twin, other)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(make(rule))
    same(optimizer.state_dict(), before)
    assert torch.equal(advance(model, optimizer), advance(twin, other))


def same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            same(*pair)
    elif isinstance(left, Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


@pytest.mark.parametrize("saved", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("own", ["curvature", "gradient", "both"])
def test_bases_of_convolutions(saved: str, own: str) -> None:
    """What was kept by modes of a convolution does not fit a whole factor."""

    def made(basis: str) -> tuple[nn.Module, SNOpt]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2)).double()
        return model, SNOpt(model, 0.02, rule="adam", basis=basis, refresh_every=1)

    def steps(model: nn.Module, optimizer: SNOpt) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 1, 3, 3, dtype=torch.float64)).square().mean().backward()
            optimizer.step()

    first, second = made(saved), made(own)
    steps(*first)
    if (saved == "gradient") != (own == "gradient"):
        with pytest.raises(ValueError, match="another basis"):
            second[1].load_state_dict(first[1].state_dict())
    else:
        second[1].load_state_dict(first[1].state_dict())
        steps(*second)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("to", [torch.float32, torch.float64])
def test_states_of_another_precision_are_cast(rule: str, to: torch.dtype) -> None:
    """As torch.optim does; also where the model is cast in the middle."""
    back = torch.float64 if to == torch.float32 else torch.float32
    one, two = net().to(back), net().to(to)
    optimizer = SNOpt(one, 0.02, rule=rule)
    advance(one, optimizer)
    fresh = SNOpt(two, 0.02, rule=rule)
    two.load_state_dict(one.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    end = advance(two, fresh)
    one.to(to)
    torch.testing.assert_close(advance(one, optimizer), end, rtol=1e-4, atol=1e-5)
    assert end.dtype == to


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "gauss_newton"])
@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
def test_a_model_that_is_cast_in_the_middle(rule: str, basis: str) -> None:
    model, twin = net(), net()
    settings: dict[str, Any] = {"rule": rule, "basis": basis, "refresh_every": 3}
    ours, exact = (SNOpt(m, 0.02, **{"rule": "paper", **settings}) for m in (model.float(), twin))
    for _ in range(2):
        advance(model, ours)
        advance(twin, exact)
        model.double()
    torch.testing.assert_close(advance(model, ours), advance(twin, exact), rtol=1e-2, atol=1e-2)
    model.half()
    ours.zero_grad()
    for p in model.parameters():
        p.grad = torch.ones_like(p) / 100
    ours.step()
    assert all(p.dtype == torch.float16 and p.isfinite().all() for p in model.parameters())
