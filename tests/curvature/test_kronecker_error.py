"""Kronecker errors: none where factoring is exact, the dense comparison elsewhere, no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import snopt
from snopt import ODEBlock, SNOpt
from tests.curvature.test_exactness import bias_last, ggn
from tests.support import problems


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1).mean() / 2


def test_exact_where_factoring_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    found = snopt.kronecker_error(model, (x, y), half_squares)
    assert found.layers.keys() == {"0", "1"}
    for deviation in found.layers.values():
        assert deviation.error < 1e-7
        assert deviation.cosine == pytest.approx(1.0)
        assert deviation.scale == pytest.approx(1.0)


def test_dense_comparison() -> None:
    """Around and inside a block, with a loss of softmax type, against matrices built in full."""
    model = problems.model(ODEBlock(problems.field(), gradient="direct", rtol=1e-6, atol=1e-6))
    x, labels = torch.randn(5, 5).double(), torch.tensor([0, 1, 1, 0, 1])
    found = snopt.kronecker_error(model, (x, labels), nn.functional.cross_entropy)
    optimizer = SNOpt(model, rule="paper", lr=0.0, curvature="ggn")
    outputs = model(x)
    optimizer.curvature_pass(outputs, "categorical")
    nn.functional.cross_entropy(outputs, labels).backward()
    optimizer.step()
    for name, (a, b) in optimizer.factors().items():
        layer = model.get_submodule(name)
        names = [f"{name}.weight"] + [f"{name}.bias"] * (layer.bias is not None)
        exact = ggn(model, x, names, "categorical")
        if layer.bias is not None:
            exact = bias_last(exact, layer.out_features, layer.in_features)
        factored = torch.kron(b, a)
        got = found.layers[name]
        error = (factored - exact).norm() / exact.norm()
        assert got.error == pytest.approx(error.item(), rel=1e-6, abs=1e-7)
        cosine = (factored * exact).sum() / factored.norm() / exact.norm()
        assert got.cosine == pytest.approx(cosine.item(), rel=1e-6)
        assert got.scale == pytest.approx((factored.trace() / exact.trace()).item(), rel=1e-6)


def test_grouped_convolutions_and_tables() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(12, 2))
    batch = torch.randn(3, 2, 5), torch.randn(3, 2)
    found = snopt.kronecker_error(model, batch, half_squares)
    table = str(found)
    assert table.splitlines()[0].split() == ["layer", "error", "cosine", "scale"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["0", "2"]
    assert found.layers["0"].error > 0.01  # three places under one kernel
    assert found.layers["2"].error < 1e-3


def test_no_trace_is_left() -> None:
    model = problems.model(ODEBlock(problems.field(), options={"warm_start": True}))
    optimizer = SNOpt(model, 0.02, rule="paper")
    x, y = torch.randn(4, 5).double(), torch.randn(4, 2).double()
    other = copy.deepcopy(model)
    before = snopt.solver_state(model), copy.deepcopy(model.state_dict())
    snopt.kronecker_error(model, (x, y), half_squares)
    assert snopt.solver_state(model) == before[0]
    assert all(p.grad is None for p in model.parameters())
    rival = SNOpt(other, 0.02, rule="paper")
    for trained, own in ((model, optimizer), (other, rival)):
        half_squares(trained(x), y).backward()
        own.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_random_numbers_go_on_where_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    batch = torch.randn(6, 3), torch.randn(6, 2)
    before = torch.get_rng_state()
    snopt.kronecker_error(model, batch, half_squares)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_check() -> None:
    with pytest.raises(ValueError, match="no layer"):
        snopt.kronecker_error(nn.LayerNorm(2), (torch.randn(3, 2), torch.randn(3, 2)), half_squares)


def test_functions_that_hold_the_models_own_layers() -> None:
    class Assigned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, second = nn.Linear(3, 4), nn.Linear(4, 2)
            self.second, self.function = second, lambda h: second(h)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.function(self.first(x))
            return found

    with pytest.raises(ValueError, match=r"parameters of the original \(second.bias"):
        snopt.kronecker_error(Assigned(), (torch.randn(6, 3), torch.randn(6, 2)), half_squares)
