"""Vector products through adjoint solves: the Jacobian's, in memory that steps do not add to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import GaussNewton, ODEBlock
from snopt.curvature.residuals import Residuals
from snopt.curvature.vector_products import VectorProducts
from tests.support.jacobians import jacobian
from tests.support.output_steps import Trajectories, inputs, like, same, step
from tests.support.peak import Peak
from tests.support.problems import Field

ADJOINTS = ("adjoint", "adjoint-seminorm")


class Pair(nn.Module):
    """A field of two tensors, with time and a parameter that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 3)
        self.rate = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Linear(1, 1)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = state
        return torch.sin(self.a(y)) * t, torch.tanh(self.b(x)) - self.rate * y


class Pairs(nn.Module):
    def __init__(self, times: Tensor | None, **options: Any) -> None:
        super().__init__()
        self.stem, self.times = nn.Linear(3, 5), times
        self.block = ODEBlock(Pair(), (1.0, 0.0), **options)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = self.stem(x)
        found: Tensor = torch.cat(self.block((start[:, :2], start[:, 2:]), self.times), dim=-1)
        return self.head(found)


def products(model: nn.Module) -> tuple[VectorProducts, Tensor]:
    """R x and R^T u of a model with S = 1, and its Jacobian by torch.func through equal steps."""
    model.double()
    outputs = model(inputs())
    flat = outputs.reshape(len(outputs), -1, 1)
    one = torch.ones_like(flat).detach()
    seen = Residuals(one, one, one[:, 0, 0], one)
    for block in model.modules():
        if isinstance(block, ODEBlock):
            block.gradient = "direct"
    _, rows = jacobian(model, lambda m: m(inputs()))
    return VectorProducts(flat, seen, [*model.parameters()]), rows


TIMES = torch.tensor([1.0, 0.6, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(("kind", "times"), [*itertools.product(ADJOINTS, (None, TIMES))])
def test_products_are_those_of_the_jacobian(kind: str, times: Tensor | None) -> None:
    torch.manual_seed(0)
    model = Pairs(times, method="rk4", gradient=kind, options={"steps": 20})
    found, rows = products(model)
    x = torch.randn(rows.shape[1], dtype=torch.float64)
    forth = found.forth(x)
    # The steps are those of the forward solve, so that this is the discrete solve's derivative.
    torch.testing.assert_close(forth.flatten(), rows @ x, rtol=1e-11, atol=1e-11)
    u = torch.randn_like(forth)
    torch.testing.assert_close(found.back(u), u.flatten() @ rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ADJOINTS)
def test_a_step_is_that_of_backpropagation(kind: str) -> None:
    found = []
    for gradient, memory in (("direct", 2.0**30), (kind, 0.0)):
        torch.manual_seed(0)
        model = Trajectories(gradient, method="dopri5", rtol=1e-8, atol=1e-8).double()
        x = inputs()[:2]
        y = like(model(x))
        mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(4)) < 0.7
        loss = lambda f, y=y, mask=mask: functional.huber_loss(f[mask], y[mask])  # noqa: E731
        found.append(step(model, x, loss, targets=y, batch_dim=1, memory=memory))
    same(found[1], found[0], 1e-5)


def observed(steps: int, kind: str) -> tuple[ODEBlock, int]:
    """A block after a pass of vector products, and the pass' peak memory."""
    torch.manual_seed(0)
    options = {"step_size": 1 / steps}
    block = ODEBlock(Field(), method="rk4", gradient=kind, options=options).double()
    optimizer = GaussNewton(block, memory=0.0, cg_iterations=1)
    x = torch.randn(32, 3, dtype=torch.float64)
    with Peak() as peak:
        outputs = block(x)
        loss = (outputs - 1).square().mean()
        optimizer.curvature_pass(outputs, "gaussian", loss=loss)
    return block, peak.peak


@pytest.mark.parametrize("kind", ADJOINTS)
def test_memory_does_not_grow_with_steps(kind: str) -> None:
    peaks = [observed(steps, kind)[1] for steps in (4, 24)]
    assert max(peaks) < 1.1 * min(peaks)


def test_memory_of_backpropagation_grows() -> None:
    assert observed(24, "direct")[1] > 3 * observed(4, "direct")[1]


def test_products_count_as_curvature() -> None:
    block, _ = observed(4, "adjoint")
    assert block.nfe_forward == 16
    assert block.nfe_backward == 0
    assert block.nfe_curvature > 32


def test_gradients_are_not_differentiated_in_anything_else() -> None:
    block, _ = observed(4, "adjoint")
    loss = block(torch.randn(2, 3, dtype=torch.float64)).square().sum()
    grads = torch.autograd.grad(loss, [*block.parameters()], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        sum(g.square().sum() for g in grads).backward()
