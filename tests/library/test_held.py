"""Tensors that a field holds for one solve: gradients reach them, and the solve keeps its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from snopt import ODEBlock
from tests.library import problems
from tests.library.problems import GRADIENTS


class Told(nn.Module):
    """A field that reads an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = problems.field()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.inner(t, x) + torch.tanh(self.context * x)
        return out


def found(kind: str) -> list[Tensor]:
    field, (x, _) = Told(), problems.data()
    block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
    torch.manual_seed(2)
    encoder = nn.Linear(3, 3).double()
    loss = torch.zeros(()).double()
    for part in (x[:3], x[3:]):
        field.context = encoder(part)
        loss = loss + block(part).square().sum()
    loss.backward()
    return [p.grad for m in (encoder, field) for p in m.parameters()]


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_each_solve_has_its_own_context(kind: str) -> None:
    torch.testing.assert_close(found(kind), found("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_parameters_from_outside(kind: str) -> None:
    field, (x, _) = problems.field(), problems.data()

    def run(kind: str) -> list[Tensor]:
        block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
        theta = {k: (1.5 * p).detach().requires_grad_() for k, p in block.named_parameters()}
        functional_call(block, theta, (x,)).square().sum().backward()
        return [p.grad for p in theta.values()]

    torch.testing.assert_close(run(kind), run("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_dropout_is_told(kind: str) -> None:
    field, (x, _) = problems.field(), problems.data()
    field.outer = nn.Sequential(nn.Dropout(0.3), field.outer)
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
    with pytest.warns(UserWarning, match="masks"):
        block(x)
    block.eval()
    block(x)
