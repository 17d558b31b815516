"""A field that was compiled by TorchScript."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.ode.gradients import GRADIENTS


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * (1 + t)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_scripted_field_has_the_gradient_of_the_plain_one(kind: str) -> None:
    torch.manual_seed(0)
    plain, x = Plain(), torch.randn(4, 3, dtype=torch.float64)
    found = []
    for field in (plain, torch.jit.script(plain)):
        plain.zero_grad()
        ODEBlock(field, gradient=kind)(x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
        field.zero_grad()
    torch.testing.assert_close(found[1], found[0])
