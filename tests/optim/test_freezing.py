"""Parameters move where torch's optimizers move them: where there is a gradient at the step."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.optim.rules import RULES
from tests.support import problems
from tests.support.training import XS, YS, flat

Change = Callable[["Net"], None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.block = ODEBlock(
            problems.field(), method="rk4", gradient="direct", options={"steps": 2}
        )
        self.head = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.norm(self.stem(x))))
        return out


def frozen(*names: str) -> Change:
    def change(model: Net) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(names))

    return change


STAGES: dict[str, list[Change]] = {
    "a head is frozen": [frozen(), frozen("head"), frozen()],
    "a head is thawed": [frozen("head"), frozen()],
    "the field is frozen": [frozen(), frozen("block"), frozen()],
    "the field is thawed": [frozen("block"), frozen()],
    "biases are frozen": [frozen(), frozen("head.bias", "stem.bias", "block.field.inner.bias")],
    "biases are thawed": [frozen("head.bias", "block.field.inner.bias"), frozen()],
    "weights are frozen": [frozen(), frozen("head.weight", "block.field.inner.weight"), frozen()],
    "a norm is frozen": [frozen("norm"), frozen(), frozen("norm")],
}
RULES_OF_FACTORS = [rule for rule in RULES if rule != "gauss_newton"]


def step(model: nn.Module, optimizer: Any, keep_zeros: bool = False) -> set[str]:
    """Names of what moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad(set_to_none=not keep_zeros)
    outputs = model(XS)
    if isinstance(optimizer, SNOpt):
        optimizer.curvature_pass(outputs, "gaussian")
    loss = (outputs - YS).square().sum(1).mean() / 2
    loss.backward()
    optimizer.step()
    return {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize(
    "settings",
    [
        *({"rule": rule, "weight_decay": decay} for rule in RULES for decay in (0.0, 0.1)),
        {"rule": "paper", "momentum": 0.9, "weight_decay": 0.1},
        {"rule": "adam", "basis": "gradient"},
        {"rule": "adam", "basis": "both", "weight_decay": 0.1},
        {"rule": "paper", "carry_over": True, "refresh_every": 2},
        {"rule": "kfac", "curvature": "ggn", "stagger": True, "refresh_every": 3},
    ],
    ids=str,
)
def test_what_moves_is_what_torch_moves(stages: list[Change], settings: dict[str, Any]) -> None:
    model, twin = Net(), Net()
    stages[0](model)
    stages[0](twin)
    ours = SNOpt(model, 0.01, **{"rule": "paper", **settings})
    theirs = torch.optim.SGD(
        twin.parameters(), 0.01, settings.get("momentum", 0.0), weight_decay=0.1
    )
    for change in stages:
        change(model)
        change(twin)
        for _ in range(2):
            assert step(model, ours) == step(twin, theirs)
            assert flat(model).isfinite().all()


@pytest.mark.parametrize("rule", RULES_OF_FACTORS)
def test_gradients_of_zero_move_what_torch_moves(rule: str) -> None:
    """zero_grad(set_to_none=False) leaves zeros: momentum and decay go on."""
    model, twin = Net(), Net()
    settings = {"cautious": False} if rule == "adam" else {"momentum": 0.9}
    ours = SNOpt(model, 0.01, rule=rule, weight_decay=0.1, **settings)
    theirs = torch.optim.SGD(twin.parameters(), 0.01, 0.9, weight_decay=0.1)
    for change in (frozen(), frozen("head")):
        change(model)
        change(twin)
        assert step(model, ours, keep_zeros=True) == step(twin, theirs, keep_zeros=True)


@pytest.mark.parametrize("rule", RULES_OF_FACTORS)
@pytest.mark.parametrize("name", ["head.bias", "head.weight", "norm.weight"])
def test_a_gradient_taken_away_by_hand(rule: str, name: str) -> None:
    model = Net()
    optimizer = SNOpt(model, 0.01, rule=rule, weight_decay=0.1)
    for _ in range(2):
        before = model.get_parameter(name).detach().clone()
        optimizer.zero_grad()
        problems.squares(YS)(model(XS)).backward()
        model.get_parameter(name).grad = None
        optimizer.step()
        assert torch.equal(model.get_parameter(name), before)


@pytest.mark.parametrize("rule", RULES_OF_FACTORS)
def test_thawed_layers_are_preconditioned_at_once(rule: str) -> None:
    """From the first step on, and with the factors that they would have had."""
    model = Net()
    frozen("head", "block.field.inner.bias")(model)
    optimizer = SNOpt(model, 0.0, rule=rule, warmup_steps=0)
    step(model, optimizer)
    assert "head" not in optimizer.factors()
    assert "head.weight" not in optimizer.coverage().sizes
    frozen()(model)
    step(model, optimizer)
    fresh = SNOpt(model, 0.0, rule=rule, warmup_steps=0)
    step(model, fresh)
    for name in ("head", "block.field.inner"):
        for got, want in zip(optimizer.factors()[name], fresh.factors()[name], strict=True):
            torch.testing.assert_close(got, want)
    assert optimizer.coverage().preconditioned["head.bias"] == "head"
    assert optimizer.coverage().sizes.keys() == dict(model.named_parameters()).keys()


def test_frozen_layers_are_not_captured() -> None:
    model = Net()
    frozen("head", "block")(model)
    optimizer = SNOpt(model, 0.01, rule="paper", refresh_every=1)
    step(model, optimizer)
    assert optimizer.method.capture.sums.keys() == {"stem"}
    assert not model.block.observers
    assert model.block.nfe_curvature == 0


def test_a_layer_without_its_bias_is_a_layer_without_bias() -> None:
    """Frozen from the start or afterwards, the weight takes the same step."""
    ends = []
    for late in (False, True):
        model = Net()
        if not late:
            frozen("head.bias")(model)
        optimizer = SNOpt(model, 0.01, rule="paper")
        frozen("head.bias")(model)
        step(model, optimizer)
        ends.append(flat(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("rule", RULES)
def test_states_without_frozen_names_still_load(rule: str) -> None:
    """As they were saved by versions that left frozen parameters out of the groups."""
    model, twin = Net(), Net()
    groups = [[{"params": m.head, "lr": 0.01}, {"params": m}] for m in (model, twin)]
    for m in (model, twin):
        frozen("head", "stem.bias")(m)
    optimizer, fresh = (SNOpt(g, 0.01, rule=rule) for g in groups)
    step(model, optimizer)
    state = optimizer.state_dict()
    old = {name: entry for name, entry in state.items() if name != "rule"}
    old["param_groups"] = [
        {**g, "params": [n for n in g["params"] if "head" not in n and n != "stem.bias"]}
        for g in state["param_groups"][1:]
    ]
    if "layers" in state["preconditioner"]:
        layers = {n: x for n, x in state["preconditioner"]["layers"].items() if n != "head"}
        old["preconditioner"] = {**state["preconditioner"], "layers": layers}
    stream = io.BytesIO()
    torch.save(old, stream)
    stream.seek(0)
    twin.load_state_dict(model.state_dict())
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    step(model, optimizer)
    step(twin, fresh)
    assert torch.equal(flat(model), flat(twin))
