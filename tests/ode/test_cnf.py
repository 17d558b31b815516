"""Continuous normalising flows: a field that differentiates itself for its divergence.

The cotangents in B are those of one derivative: of the slope (z', d log p), by the adjoint. The
inner derivative that makes the divergence adds no cotangents of its own; its dependence on a
layer's output is part of that layer's cotangent.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from tests.support.problems import GRADIENTS


class Flow(nn.Module):
    """(z, log p) with the exact trace by automatic differentiation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 2)

    def velocity(self, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        time = torch.ones_like(z[:, :1]) * t
        h = self.inner(torch.cat([z, time], 1))
        return h, self.outer(torch.tanh(h))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            return self.slopes(t, state[0].requires_grad_(True))

    def slopes(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        _, dz = self.velocity(t, z)
        trace = sum(
            torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)
        )
        return dz, -trace.unsqueeze(1)


class ByHand(Flow):
    """The same with the divergence written out, no inner derivative."""

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, dz = self.velocity(t, state[0])
        slope = 1 - torch.tanh(h).square()
        mix = (self.outer.weight.T * self.inner.weight[:, :2]).sum(1)
        return dz, -(slope * mix).sum(1, keepdim=True)


def loss(z: Tensor, log_p: Tensor) -> Tensor:
    return (0.5 * z.square().sum(1, keepdim=True) + log_p).mean()


def factors(field: nn.Module, kind: str, z: Tensor) -> tuple[dict, Tensor]:
    block = ODEBlock(field, method="rk4", gradient=kind, options={"steps": 8}).double()
    optimizer = SNOpt(block, rule="paper", lr=0.0)
    loss(*block((z, torch.zeros(len(z), 1, dtype=z.dtype)))).backward()
    grads = torch.cat([p.grad.reshape(-1) for p in block.parameters()])
    optimizer.step()
    return optimizer.factors(), grads


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_outer_derivative_alone_enters(kind: str) -> None:
    """Automatic and written-out divergence give the same gradient and the same factors."""
    z = torch.randn(6, 2, dtype=torch.float64)
    automatic, grads = factors(Flow(), kind, z)
    written, expected = factors(ByHand(), kind, z)
    torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-12)
    for name, pair in written.items():
        for got, want in zip(automatic[name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_flow_that_asks_whether_its_state_has_a_graph(kind: str) -> None:
    """In every evaluation of a solve without one, the first included, it has none."""

    class Asking(Flow):
        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            with torch.enable_grad():
                return self.slopes(t, z)

    start = torch.randn(6, 2, dtype=torch.float64)
    found = []
    for field in (Asking(), Flow()):
        block = ODEBlock(field, method="rk4", gradient=kind, options={"steps": 4}).double()
        z = start.clone().requires_grad_()
        loss(*block((2 * z, torch.zeros(6, 1, dtype=z.dtype)))).backward()
        found.append(torch.cat([p.grad.flatten() for p in (z, *block.parameters())]))
    torch.testing.assert_close(*found)


def test_factors_against_a_dense_grid() -> None:
    """Inputs and cotangents of the written-out field, collected without the library."""
    z = torch.randn(6, 2, dtype=torch.float64)
    field = ByHand().double()
    steps, n = 200, len(z)
    state = torch.cat([z, torch.zeros(n, 1, dtype=z.dtype)], 1).requires_grad_()
    states, h = [state], 1 / steps

    def slope(t: float, s: Tensor) -> Tensor:
        return torch.cat(field(torch.tensor(t, dtype=z.dtype), (s[:, :2], s[:, 2:])), 1)

    for i in range(steps):
        s, t = states[-1], i * h
        k1 = slope(t, s)
        k2 = slope(t + h / 2, s + h / 2 * k1)
        k3 = slope(t + h / 2, s + h / 2 * k2)
        k4 = slope(t + h, s + h * k3)
        states.append(s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    adjoints = torch.autograd.grad(loss(states[-1][:, :2], states[-1][:, 2:]), states)
    a, b = torch.zeros(4, 4).double(), torch.zeros(5, 5).double()
    for i, (s, adjoint) in enumerate(zip(states, adjoints, strict=True)):
        weight = h / 2 if i in (0, steps) else h
        seen = []
        hook = field.inner.register_forward_hook(lambda m, x, y, seen=seen: seen.append((x[0], y)))
        out = slope(i * h, s.detach().requires_grad_())
        hook.remove()
        ((x, y),) = seen
        (g,) = torch.autograd.grad(out, y, adjoint * n)
        x = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1).detach()
        a += weight * x.T @ x / n
        b += weight * g.T @ g / n
    block = ODEBlock(Flow(), rtol=1e-11, atol=1e-11).double()
    optimizer = SNOpt(block, rule="paper", lr=0.0)
    loss(*block((z, torch.zeros(n, 1, dtype=z.dtype)))).backward()
    optimizer.step()
    got = optimizer.factors()["field.inner"]
    torch.testing.assert_close(got[0], a, rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(got[1], b, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["paper", "adam"])
def test_training_a_flow(rule: str) -> None:
    block = ODEBlock(Flow(), (1.0, 0.0), gradient="adjoint-seminorm")
    optimizer = SNOpt(block, 0.01, rule=rule, refresh_every=5)
    z = 3 + torch.randn(64, 2)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        value = loss(*block((z, torch.zeros(64, 1))))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert optimizer.diagnostics()["refresh_failures"] == 0
