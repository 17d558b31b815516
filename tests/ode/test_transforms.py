"""Blocks under torch.export and torch.func, where tensors hold no numbers to look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from snopt import ODEBlock
from tests.support import problems
from tests.support.problems import GRADIENTS


def block(kind: str, **options: Any) -> ODEBlock:
    return ODEBlock(problems.field(), method="rk4", gradient=kind, options={"steps": 3, **options})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "training"), [("direct", True), ("adjoint", False)])
def test_export_with_fixed_steps(kind: str, training: bool) -> None:
    x, _ = problems.data()
    layer = block(kind).train(training)
    samples = ({0: torch.export.Dim("samples", min=2, max=64)},)
    with torch.set_grad_enabled(training):
        exported = torch.export.export(layer, (x,), dynamic_shapes=samples).module()
        for batch in (x, x[:4]):
            torch.testing.assert_close(exported(batch), layer(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export_of_an_adaptive_solve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"options=\{'steps': \.\.\.\}"):
        torch.export.export(ODEBlock(problems.field()), (problems.data()[0],))


class Unbatched(problems.Field):
    """One sample of shape (3,)."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return super().forward(t, x[None])[0]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_vmap_with_fixed_steps(kind: str) -> None:
    x, _ = problems.data()
    batched = block(kind)
    single = ODEBlock(Unbatched().double(), method="rk4", gradient=kind, options={"steps": 3})
    single.load_state_dict(batched.state_dict())
    torch.testing.assert_close(vmap(single)(x), batched(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_single_samples(kind: str) -> None:
    x, _ = problems.data()
    layer = block(kind)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample[None],)).square().sum()

    rows = vmap(grad(loss), (None, 0))(parameters, x)
    layer.zero_grad()
    block_ = block("direct")
    block_(x).square().sum().backward()
    for name, p in block_.named_parameters():
        torch.testing.assert_close(rows[name].sum(0), p.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_adaptive_solves_are_refused(kind: str) -> None:
    x, _ = problems.data()
    layer = ODEBlock(problems.field(), gradient=kind)
    for transform in (jacrev, lambda f: vmap(lambda x: f(x[None])[0])):
        with pytest.raises(ValueError, match=r"options=\{'steps'"):
            transform(layer)(x)


def test_jacobian_through_the_solvers_own_fixed_steps() -> None:
    x, _ = problems.data(2)
    layer = ODEBlock(problems.field(), method="rk4", gradient="direct", options={"step_size": 0.25})
    want = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(jacrev(layer)(x), want, rtol=1e-10, atol=1e-12)
