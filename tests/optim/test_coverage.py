"""What is preconditioned, and the reason for everything that is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from tests.support import problems


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.table = nn.Embedding(4, 3)
        self.gain = nn.Parameter(torch.ones(3))
        self.block = ODEBlock(problems.field().float(), method="rk4", options={"steps": 2})
        self.head, self.tied = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied.weight = self.head.weight
        self.frozen = nn.Linear(3, 3)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x)) * self.gain + self.table(torch.zeros(len(x), dtype=torch.long))
        out: Tensor = self.frozen(self.tied(torch.tanh(self.head(self.block(h)))))
        return out


def test_every_parameter_is_accounted_for() -> None:
    model = Zoo()
    coverage = SNOpt(model, rule="paper").coverage()
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(coverage.preconditioned) | set(coverage.fallback) == names == set(coverage.sizes)
    assert not set(coverage.preconditioned) & set(coverage.fallback)
    assert coverage.preconditioned["stem.bias"] == "stem"
    assert coverage.preconditioned["block.field.inner.weight"] == "block.field.inner"
    reasons = {
        "norm.weight": "LayerNorm", "table.weight": "Embedding", "gain": "Zoo",
        "tied.bias": "shared", "frozen.bias": "frozen",
    }  # fmt: skip
    for name, word in reasons.items():
        assert word in coverage.fallback[name], name
    text = str(coverage)
    assert all(name in text for name in names)
    covered = sum(coverage.sizes[n] for n in coverage.preconditioned)
    assert coverage.fraction == covered / sum(coverage.sizes.values())


@pytest.mark.parametrize("rule", ["adam", "paper", "gauss_newton"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_no_inputs(rule: str, bias: bool) -> None:
    """As of a model without the condition that it may have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 2, bias=bias), nn.Tanh(), nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 0))  # torch warns of nn.Linear(0, 2)
    optimizer = SNOpt(model, rule=rule)
    assert "no elements" in optimizer.coverage().fallback["0.weight"]
    for _ in range(2):
        optimizer.zero_grad()
        outputs, y = model(torch.zeros(4, 0)), torch.tensor([0, 1, 1, 1])
        optimizer.curvature_pass(outputs, targets=y)
        nn.functional.cross_entropy(outputs, y).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_only_the_fields() -> None:
    model = Zoo()
    optimizer = SNOpt(model, rule="paper", precondition="ode")
    coverage = optimizer.coverage()
    assert set(coverage.preconditioned.values()) == {"block.field.inner", "block.field.outer"}
    assert "outside the ODE blocks" in coverage.fallback["stem.weight"]


def test_plain_parameters_take_the_plain_update() -> None:
    """SGD's step beside preconditioned layers, the shared weight with the gradient of both uses."""
    model, x = Zoo(), torch.randn(6, 5)
    optimizer = SNOpt(model, 0.1, rule="paper")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(x).square().mean().backward()
    optimizer.step()
    for name in optimizer.coverage().fallback:
        p = model.get_parameter(name)
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * p.grad)
    for name in optimizer.coverage().preconditioned:
        p = model.get_parameter(name)
        assert not torch.allclose(p.detach(), before[name] - 0.1 * p.grad)
    assert torch.equal(model.frozen.weight, before["frozen.weight"])


def test_a_parametrized_weight_is_named() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    coverage = SNOpt(model, rule="paper").coverage()
    assert not coverage.preconditioned
    assert coverage.fallback.keys() == coverage.sizes.keys()
    assert all(
        "_WeightNorm" in reason for name, reason in coverage.fallback.items() if "param" in name
    )


def test_parameters_that_came_later_are_none_of_the_optimizers() -> None:
    model = nn.Linear(3, 2)
    optimizer = SNOpt(model)
    model.bias = nn.Parameter(torch.zeros(2))
    assert set(optimizer.coverage().sizes) == {"weight", "bias"}
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not model.bias.any()


def test_layers_that_gauss_newton_has_no_rows_of(caplog: pytest.LogCaptureFixture) -> None:
    """What is called on one vector for the whole batch."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.constant, self.head = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x) + self.constant(torch.ones(3))
            return out

    model, (x, y) = Shared(), (torch.randn(6, 5), torch.randint(4, (6,)))
    optimizer = SNOpt(model, rule="gauss_newton")
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(x)
        optimizer.curvature_pass(logits)
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    coverage = optimizer.coverage()
    assert coverage.preconditioned.keys() == {"head.weight", "head.bias"}
    assert all("without a dimension of samples" in why for why in coverage.fallback.values())
    assert caplog.text.count("constant: the fallback update is taken") == 1
