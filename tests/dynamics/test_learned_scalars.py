"""Learned scalars of a system that the library does not know are in a model's log too."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import ElapsedTime, LearnedScalar, learned_scalars


class Damped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drag = LearnedScalar(0.25, upper=1.0)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return -self.drag() * x


def test_a_further_system_is_traced() -> None:
    model = nn.Sequential(ODEBlock(ElapsedTime(Damped())), ODEBlock(Damped()))
    names = ["0.field.system.drag", "1.field.drag"]
    assert learned_scalars(model) == {name: pytest.approx(0.25) for name in names}
