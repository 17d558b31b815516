"""Where Kronecker factoring is exact, factors are autograd's Gauss-Newton matrix to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from snopt import ODEBlock, SNOpt
from tests.support.problems import GRADIENTS

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def jacobian(model: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    """d outputs / d parameters, (N, outputs, parameters in the order of ``names``), row by row."""
    parameters = [model.get_parameter(name) for name in names]
    y = model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, parameters, retain_graph=True)])
        for v in y.reshape(-1)
    ]
    return torch.stack(rows).view(len(x), -1, rows[0].numel())


def bias_last(block: Tensor, out: int, inner: int) -> Tensor:
    """A matrix over (weight, bias) in the order of kron(B, A): bias behind weights."""
    order = [
        place for i in range(out) for place in [*range(i * inner, (i + 1) * inner), out * inner + i]
    ]
    return block[order][:, order]


def hessian(likelihood: str, y: Tensor) -> Tensor:
    """d2 loss / d outputs2 of every sample, by autograd."""
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "categorical": lambda z: -torch.log_softmax(z, 0)[0],
        "gaussian": lambda z: z.square().sum() / 2,
    }
    return torch.stack([jacrev(jacrev(losses[likelihood]))(row) for row in y])


def ggn(model: nn.Module, x: Tensor, names: list[str], likelihood: str) -> Tensor:
    jac = jacobian(model, x, names)
    inner = hessian(likelihood, model(x).detach().flatten(1))
    return torch.einsum("nop,noq,nqr->pr", jac, inner, jac) / len(x)


class Constant(nn.Module):
    """One Linear layer whose input and cotangent do not change in time."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3, bias=bias)
        self.register_buffer("z", torch.tensor([[0.3, -1.2]]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(self.z.expand(len(x), -1))


def collected(model: nn.Module, x: Tensor, likelihood: str, **settings: Any) -> dict[str, Any]:
    optimizer = SNOpt(model, lr=0.0, rule="paper", curvature="ggn", **settings)
    outputs = model(x)
    optimizer.curvature_pass(outputs, likelihood)
    outputs.square().sum().backward()  # some other loss: it must not matter
    optimizer.step()
    return optimizer.factors()


@pytest.mark.parametrize(
    ("likelihood", "bias", "sampling"),
    [("categorical", True, "steps"), ("gaussian", False, "steps"), ("categorical", True, "grid")],
)
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.5, 3.0), (1.0, 0.3)])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_one_layer_one_sample_constant_in_time(
    kind: str, span: tuple[float, float], likelihood: str, bias: bool, sampling: str
) -> None:
    """block = A (x) B for T = 1 and T != 1."""
    torch.manual_seed(0)
    block = ODEBlock(Constant(bias), span, gradient=kind, **TIGHT).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    (pair,) = collected(block, x, likelihood, sampling=sampling).values()
    names = ["field.layer.weight"] + ["field.layer.bias"] * bias
    exact = ggn(block, x, names, likelihood)
    exact = bias_last(exact, 3, 2) if bias else exact
    torch.testing.assert_close(torch.kron(pair[1], pair[0]), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_of_a_trajectory(kind: str, steps: int) -> None:
    """The adjoint jumps at output times, by the output's cotangent."""
    field, t, samples = Constant(bias=True), torch.tensor([0.0, 0.5, 0.8, 2.0]), 4
    block = ODEBlock(field, (0.0, 2.0), method="rk4", gradient=kind, options={"steps": steps})
    weights, x = torch.randn(4, samples, 3), torch.randn(samples, 3, requires_grad=True)
    optimizer = SNOpt(block, lr=0.0, rule="paper")
    (block(x, t) * weights).sum().backward()
    optimizer.step()
    adjoints = samples * torch.stack([weights[k:].sum(0) for k in range(1, 4)])
    lengths = t.diff()
    b = 2.0 * torch.einsum("k,kni,knj->ij", lengths, adjoints, adjoints) / samples
    torch.testing.assert_close(optimizer.factors()["field.layer"][1], b)


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_empirical_block_is_the_gradient_s_outer_product(
    kind: str, span: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    block = ODEBlock(Constant(True), span, gradient=kind, **TIGHT).double()
    optimizer = SNOpt(block, rule="paper", lr=0.0)
    block(torch.randn(1, 3, dtype=torch.float64)).sin().sum().backward()
    layer = block.field.layer
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).reshape(-1)
    optimizer.step()
    ((a, b),) = optimizer.factors().values()
    torch.testing.assert_close(
        torch.kron(b, a), torch.outer(gradient, gradient), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (2, 3, 4, 3)])
def test_deep_linear_networks_outside_the_block(widths: tuple[int, ...], likelihood: str) -> None:
    """For a Gaussian cotangents do not depend on the sample: any batch is exact."""
    torch.manual_seed(0)
    layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(6 if likelihood == "gaussian" else 1, widths[0], dtype=torch.float64)
    found = collected(model, x, likelihood)
    for name, layer in model.named_children():
        exact = ggn(model, x, [f"{name}.weight", f"{name}.bias"], likelihood)
        exact = bias_last(exact, layer.out_features, layer.in_features)
        a, b = found[name]
        torch.testing.assert_close(torch.kron(b, a), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_head_and_stem_around_a_block(kind: str) -> None:
    """The head is exact for one sample whatever comes before; so is the stem."""
    torch.manual_seed(0)

    class Decay(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return -0.5 * torch.tanh(x)

    model = nn.Sequential(
        nn.Linear(2, 3), ODEBlock(Decay(), gradient=kind, **TIGHT), nn.Linear(3, 4)
    ).double()
    x = torch.randn(1, 2, dtype=torch.float64)
    found = collected(model, x, "categorical")

    for name, (out, inner) in {"0": (3, 2), "2": (4, 3)}.items():
        exact = bias_last(
            ggn(model, x, [f"{name}.weight", f"{name}.bias"], "categorical"), out, inner
        )
        # The head sees no solver; the stem's cotangents carry the adjoint's own error.
        limit = {"rtol": 1e-10, "atol": 1e-12} if name == "2" else {"rtol": 1e-7, "atol": 1e-9}
        a, b = found[name]
        torch.testing.assert_close(torch.kron(b, a), exact, **limit)


def test_one_convolution_with_one_position() -> None:
    """A kernel as large as its input has one location: a Linear layer in disguise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()).double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    ((a, b),) = collected(model, x, "gaussian").values()
    exact = bias_last(ggn(model, x, ["0.weight", "0.bias"], "gaussian"), 3, 18)
    torch.testing.assert_close(torch.kron(b, a), exact, rtol=1e-10, atol=1e-12)
