"""Gauss-Newton of all outputs with complex parameters, and with sparse gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snopt
from tests.support import problems

X, Y = problems.batch()


class Modes(nn.Module):
    """Complex weights, as complex numbers or as pairs of real ones."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pairs = nn.Linear(5, 3).double(), pairs
        w = torch.randn(3, 2, dtype=torch.complex128)
        self.w = nn.Parameter(torch.view_as_real(w).clone() if pairs else w)

    def forward(self, x: Tensor) -> Tensor:
        w = torch.view_as_complex(self.w) if self.pairs else self.w
        z = torch.tanh(self.stem(x)).to(w.dtype) @ w
        return z.abs() + z.imag.sin()


def losses(model: nn.Module, count: int = 4, at: int = -1, **settings: Any) -> list[float]:
    """With damping that is steered, momentum and decay; after ``at`` steps the run is resumed."""
    settings = {"momentum": 0.5, "weight_decay": 0.01, **settings}
    optimizer = snopt.GaussNewton(model, **settings)
    found = []
    for i in range(count):
        if i == at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer.close()
            optimizer = snopt.GaussNewton(model, **settings)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        outputs = model(X)
        loss = nn.functional.mse_loss(outputs, Y)
        optimizer.curvature_pass(outputs, "gaussian", targets=Y, loss=loss)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


SETTINGS: list[dict[str, Any]] = [{}, {"memory": 1}, {"damping": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_complex_numbers_are_pairs_of_real_ones(settings: dict[str, Any]) -> None:
    one, two = Modes(pairs=False), Modes(pairs=True)
    assert losses(one, **settings) == pytest.approx(losses(two, **settings), rel=1e-8)
    torch.testing.assert_close(torch.view_as_real(one.w), two.w, rtol=1e-6, atol=1e-8)
    assert losses(Modes(pairs=False), at=2) == losses(Modes(pairs=False))


@pytest.mark.parametrize("settings", SETTINGS)
def test_sparse_gradients_are_refused(settings: dict[str, Any]) -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.table((x[:, 0] > 0).long()))
            return out

    with pytest.raises(RuntimeError, match=r"'table\.weight' has a sparse gradient"):
        losses(Looked(), **settings)
