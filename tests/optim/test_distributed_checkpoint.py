"""Checkpoints through torch.distributed.checkpoint: training goes on bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from snopt import SNOpt
from tests.support import problems
from tests.support.training import XS, YS, flat, net

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")

SETTINGS: dict[str, dict[str, Any]] = {
    **{
        f"{rule}-{basis}": {"rule": rule, "basis": basis, "refresh_every": 3}
        for rule in ("paper", "adam", "kfac")
        for basis in ("curvature", "gradient", "both")
    },
    "momentum": {"momentum": 0.9, "fallback": "adam", "carry_over": True, "refresh_every": 3},
    "fisher": {"curvature": "fisher", "refresh_every": 2},
    "gauss_newton": {"rule": "gauss_newton"},
}


def train(model: nn.Module, optimizer: SNOpt, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(XS)
        optimizer.curvature_pass(outputs, "gaussian")
        ((outputs - YS).square().sum(1).mean() / 2).backward()
        optimizer.step()


def by_get_state_dict(old: Any, new: Any, path: Path) -> None:
    model, optimizer = get_state_dict(*old)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)
    model, optimizer = get_state_dict(*new)
    carried = {"model": model, "optimizer": optimizer}
    dcp.load(carried, checkpoint_id=path)
    set_state_dict(*new, model_state_dict=carried["model"], optim_state_dict=carried["optimizer"])


def by_state_dict(old: Any, new: Any, path: Path) -> None:
    dcp.save({"m": old[0].state_dict(), "o": old[1].state_dict()}, checkpoint_id=path)
    carried = {"m": new[0].state_dict(), "o": new[1].state_dict()}
    dcp.load(carried, checkpoint_id=path)
    new[0].load_state_dict(carried["m"])
    new[1].load_state_dict(carried["o"])


def by_torch_save(old: Any, new: Any, path: Path) -> None:
    """What get_optimizer_state_dict() returns, saved without the rest of it."""
    options = StateDictOptions(cpu_offload=True)
    torch.save(get_optimizer_state_dict(*old, options=options), path)
    set_optimizer_state_dict(*new, torch.load(path, weights_only=True))
    new[0].load_state_dict(old[0].state_dict())


@pytest.mark.parametrize("carry", [by_get_state_dict, by_state_dict, by_torch_save])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_continues_bit_for_bit(
    settings: dict[str, Any], carry: Callable[..., None], tmp_path: Path
) -> None:
    one, two = net(), net(seed=1)
    settings = {"rule": "paper", **settings}
    optimizer, fresh = SNOpt(one, 0.02, **settings), SNOpt(two, 0.5, **settings)
    train(one, optimizer, 4)
    carry((one, optimizer), (two, fresh), tmp_path / "checkpoint")
    assert fresh.param_groups[0]["lr"] == 0.02
    for name, pair in optimizer.factors().items():
        for got, want in zip(fresh.factors()[name], pair, strict=True):
            assert torch.equal(got, want)
    train(one, optimizer, 4)
    train(two, fresh, 4)
    assert torch.equal(flat(one), flat(two))


def test_groups_and_an_optimizer_that_has_been_used(tmp_path: Path) -> None:
    def build(seed: int) -> tuple[nn.Module, SNOpt]:
        model = net(seed=seed)
        groups = [{"params": model[1], "lr": 0.01}, {"params": model}]
        return model, SNOpt(groups, 0.02, rule="adam", refresh_every=3)

    old, new = build(0), build(1)
    train(*old, 4)
    train(*new, 2)
    by_get_state_dict(old, new, tmp_path / "checkpoint")
    assert [g["lr"] for g in new[1].param_groups] == [0.01, 0.02]
    train(*old, 4)
    train(*new, 4)
    assert torch.equal(flat(old[0]), flat(new[0]))


def test_asking_for_the_state_makes_no_step() -> None:
    model = net()
    optimizer = SNOpt(model, 0.02, rule="paper")
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.method.steps == 0


def test_states_of_before_and_edited_ones() -> None:
    """Without the entry that is carried; and what is changed in a state is what is loaded."""
    model = net()
    optimizer = SNOpt(model, 0.02, rule="paper", momentum=0.9)
    problems.squares(YS)(model(XS)).backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"]["0.weight"] = {"momentum": torch.ones(3, 5, dtype=torch.float64)}
    state["param_groups"][0]["lr"] = 0.5
    for edited in (state, {**state, "param_groups": [_without(state["param_groups"][0])]}):
        optimizer.load_state_dict(edited)
        assert optimizer.state[model[0].weight]["momentum"].sum() == 15
        assert optimizer.param_groups[0]["lr"] == 0.5


def _without(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "whole"}


def test_a_damaged_entry_is_refused() -> None:
    optimizer = SNOpt(net(), 0.02, rule="paper")
    state = optimizer.state_dict()
    state["param_groups"][0]["whole"] = 3
    with pytest.raises(ValueError, match="damaged"):
        optimizer.load_state_dict(state)
