"""Layers whose backward pass solves an equation, by passes within the loss' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import SNOpt
from tests.support.dense import dense_step, same, stepping

ITERATIONS = 60


class Implicit(nn.Module):
    """A deep equilibrium model: h = tanh(W h + x), in both directions by fixed-point iteration."""

    truncated = False
    """Whether the way back is that of the last iteration alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inputs, self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def equation(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(h) + x)

    def forward(self, data: Tensor) -> Tensor:
        x = self.inputs(data)
        with torch.no_grad():
            h = torch.zeros_like(x)
            for _ in range(ITERATIONS):
                h = self.equation(h, x)
        h = self.equation(h, x)
        if self.truncated:
            outputs: Tensor = self.head(h)
            return outputs
        start = h.detach().requires_grad_()
        again = self.equation(start, x)

        def solve(grad: Tensor) -> Tensor:
            found = grad
            for _ in range(ITERATIONS):
                (back,) = torch.autograd.grad(again, start, found, retain_graph=True)
                found = back + grad
            return found

        h.register_hook(solve)
        outputs = self.head(h)
        return outputs


def unrolled(model: Implicit, data: Tensor, hidden: list[Tensor]) -> Tensor:
    """The outputs; the inner layer's output at the fixed point is added to ``hidden``."""
    x = model.inputs(data)
    h = torch.zeros_like(x)
    for _ in range(ITERATIONS):
        h = model.equation(h, x)
    out = model.inner(h.detach())
    hidden += [h, out]
    outputs: Tensor = model.head(torch.tanh(out + x))
    return outputs


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,))


@pytest.mark.parametrize("begin", [0, 4])
def test_gauss_newton_takes_the_loss_own_pass(begin: int) -> None:
    """Also where that begins once autograd is spared the layers' gradients."""
    model, (x, y) = Implicit(), batch()
    optimizer = stepping(model)
    for step in range(begin + 2):
        twin = Implicit()
        model.truncated = twin.truncated = step < begin
        twin.load_state_dict(model.state_dict())
        expected = dense_step(
            twin, len(x), lambda k, m=twin: functional.cross_entropy(m(x[k : k + 1]), y[k : k + 1])
        )
        optimizer.zero_grad()
        outputs = model(x)
        optimizer.curvature_pass(outputs)
        functional.cross_entropy(outputs, y).backward()
        optimizer.step()
        same(model, expected)


@pytest.mark.parametrize("rule", ["paper", "kfac"])
def test_factors_are_those_of_the_loss_own_pass(rule: str) -> None:
    model, (x, y) = Implicit(), batch()
    optimizer = SNOpt(model, rule=rule, lr=0.0)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    hidden: list[Tensor] = []
    loss = functional.cross_entropy(unrolled(model, x, hidden), y)
    # The cotangent c of W h + x solves c = D (W^T c + g), D the slope of tanh.
    (direct,) = torch.autograd.grad(loss, hidden[1])
    slope = 1 - hidden[0].detach().square()
    c = direct
    for _ in range(ITERATIONS):
        c = direct + slope * (c @ model.inner.weight.detach())
    z = functional.pad(hidden[0].detach(), (0, 1), value=1.0)
    a, b = optimizer.factors()["inner"]
    torch.testing.assert_close(a, z.T @ z / len(x))
    torch.testing.assert_close(b, c.T @ c * len(x))
