"""What a field does besides returning slopes is done as often as the solver asks for them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.ode.gradients.checkpointed import _Recorder
from snopt.ode.gradients.kept import Kept
from tests.support import problems

SOLVERS: dict[str, dict[str, Any]] = {
    "rk4": {"method": "rk4", "options": {"steps": 2}},
    "fsal": {"method": "dopri5", "options": {"steps": 2}},
    # Masks that differ from stage to stage are no ODE: nothing to control.
    "adaptive": {"method": "dopri5", "rtol": 10.0, "atol": 10.0},
}


class Normed(nn.Module):
    """Counts batches in a BatchNorm, and draws numbers or does not."""

    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm1d(3).double(), problems.Noisy(dropout=True)
        self.inner.train(noise)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.inner(t, self.norm(x))
        return out


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_of_a_random_field_are_those_of_direct_backpropagation(
    solver: str, noise: bool
) -> None:
    """Statistics, weights and random numbers after each of two training steps."""
    found = []
    for kind in ("direct", "checkpoint"):
        field, (x, _) = Normed(noise), problems.data()
        block = ODEBlock(field, gradient=kind, **SOLVERS[solver])
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        torch.manual_seed(3)
        rows = []
        for _ in range(2):
            optimizer.zero_grad()
            out = block(x)
            rows.append([block.nfe_forward])
            out.square().sum().backward()
            optimizer.step()
            rows.append([v.clone() for v in block.state_dict().values()])
        found.append([*rows, torch.rand(1)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def recorded() -> list[object]:
    return [x for x in gc.get_objects() if type(x) in (Kept, _Recorder)]


@pytest.mark.parametrize("noise", [True, False])
def test_nothing_outlives_a_first_solve(noise: bool) -> None:
    """No cycle of references keeps what was recorded until Python happens to look for cycles."""
    field, (x, _) = Normed(noise), problems.data()
    gc.disable()
    others = {id(x) for x in recorded()}  # in tracebacks of tests before it
    try:
        out = ODEBlock(field, gradient="checkpoint", **SOLVERS["rk4"])(x)
        assert isinstance(out, Tensor)
        out.sum().backward()
        del out
        assert not [x for x in recorded() if id(x) not in others]
    finally:
        gc.enable()
