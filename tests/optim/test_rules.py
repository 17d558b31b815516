"""Rules as objects: settings of their own, and one that somebody else wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from snopt import SNOpt
from snopt.curvature.kronecker import Basis
from snopt.optim.rule import State
from snopt.optim.rules import RULES, Adam, EigenbasisRule, Kfac, Paper
from snopt.optim.settings import POSITIVE, setting
from tests.support.training import flat, net, train


@dataclass(frozen=True, kw_only=True)
class Scaled(EigenbasisRule):
    """A multiple of the gradient, whatever the basis: what SGD does with another rate."""

    name: ClassVar[str] = "scaled"
    keeps: ClassVar[frozenset[str]] = frozenset()

    factor: float = setting(2.0, POSITIVE, group=True)

    def refresh(self, state: State, old: Basis | None, new: Basis) -> None:
        pass

    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        return grad * settings["factor"]

    def fallback(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        return grad * settings["factor"]


@pytest.fixture
def scaled() -> Any:
    RULES["scaled"] = Scaled
    yield
    del RULES["scaled"]


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize(
    "settings", [{"rule": Scaled(factor=3.0)}, {"rule": "scaled", "factor": 3.0}], ids=str
)
def test_a_rule_from_outside(settings: dict[str, Any]) -> None:
    model, twin = net(), net()
    end = train(model, SNOpt(model, 0.01, **{"rule": "paper", **settings}), 3)
    torch.testing.assert_close(end, train(twin, torch.optim.SGD(twin.parameters(), 0.03), 3))


def test_its_settings_are_those_of_groups_too() -> None:
    model, twin = net(), net()
    groups = [{"params": model[1].field, "factor": 1.0}, {"params": model}]
    optimizer = SNOpt(groups, 0.01, rule=Scaled())
    optimizer.param_groups[1]["factor"] = 4.0
    inside = {id(p) for p in twin[1].field.parameters()}
    other = torch.optim.SGD(
        [
            {"params": list(twin[1].field.parameters()), "lr": 0.01},
            {"params": [p for p in twin.parameters() if id(p) not in inside], "lr": 0.04},
        ]
    )
    torch.testing.assert_close(train(model, optimizer, 3), train(twin, other, 3))


def test_an_object_is_its_name_and_settings() -> None:
    for rule, name, settings in (
        (Paper(alpha=0.5, damping=0.2), "paper", {"alpha": 0.5, "damping": 0.2}),
        (
            Adam(betas=(0.8, 0.9), refresh_every=2),
            "adam",
            {"betas": (0.8, 0.9), "refresh_every": 2},
        ),
        (Kfac(momentum=0.0), "kfac", {"momentum": 0.0}),
    ):
        model, twin = net(), net()
        end = train(model, SNOpt(model, 0.02, rule=rule), 4)
        assert torch.equal(end, train(twin, SNOpt(twin, 0.02, rule=name, **settings), 4))


@pytest.mark.parametrize(("rule", "kind"), RULES.items(), ids=RULES)
def test_what_a_rule_lacks_is_refused_with_what_it_has(rule: str, kind: Any) -> None:
    model = nn.Linear(2, 2)
    own = {field.name for field in dataclasses.fields(kind)}
    others = {n: x for other in RULES.values() for n, x in other.settings().items()}
    for name, value in others.items():
        if name in own or value is None:
            continue
        with pytest.raises(ValueError, match=rf"^{name}=.*rule='{rule}' has no such") as caught:
            SNOpt(model, rule=rule, **{name: value})
        assert set(str(caught.value).split("settings are ")[1].split(", ")) == own
    with pytest.raises(TypeError, match=f"rule='{rule}' has no such.*trust"):
        SNOpt(model, rule=rule, bettas=(0.9, 0.9))
    with pytest.raises(ValueError, match=r"trust=-1\.0; expected"):
        kind(trust=-1.0)


def test_settings_beside_an_object() -> None:
    with pytest.raises(TypeError, match=r"alpha: pass it to the rule, Paper\(alpha=\.\.\.\)"):
        SNOpt(nn.Linear(2, 2), rule=Paper(), alpha=0.5)


def test_a_setting_of_another_rule_that_is_written_into_a_group() -> None:
    model = net()
    optimizer = SNOpt(model, 0.01, rule="adam")
    optimizer.param_groups[0]["damping"] = 0.1
    with pytest.raises(ValueError, match=r"damping was set, which this rule does not use.*betas"):
        train(model, optimizer, 1)


def test_betas_of_the_fallback() -> None:
    """Without them they are Adam's own; a model without layers is all fallback."""
    model, twin = nn.LayerNorm(5).double(), nn.LayerNorm(5).double()
    ours = SNOpt(model, 0.01, rule="paper", fallback="adam", betas=(0.8, 0.9))
    theirs = torch.optim.Adam(twin.parameters(), 0.01, betas=(0.8, 0.9))
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        for m, o in ((model, ours), (twin, theirs)):
            o.zero_grad()
            m(x).square().mul(x).mean().backward()
            o.step()
    torch.testing.assert_close(flat(model), flat(twin))
    with pytest.raises(ValueError, match=r"betas=\(0\.8, 0\.9\): rule='paper' has no such"):
        SNOpt(model, 0.01, rule="paper", betas=(0.8, 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("rule", ["adam", "paper", "kfac"])
@pytest.mark.filterwarnings("ignore:rule=")  # that no block tells N
def test_a_layer_without_a_gradient_stays(rule: str, basis: str, dtype: torch.dtype) -> None:
    """Its B is zero, and its inputs are large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    model[0].bias.data.fill_(-1e3)
    before = [p.clone() for p in model.parameters()]
    optimizer = SNOpt(model, rule=rule, basis=basis, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(10 * torch.randn(8, 3, dtype=dtype)).square().mean().backward()
        optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, False, True]
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert optimizer.diagnostics()["refresh_failures"] == 0
