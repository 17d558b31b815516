"""Precisions other than the default: autocast, and a default dtype that is not the model's."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.layers.kinds import layer_of
from snopt.optim.judging import predicted_change
from snopt.optim.preconditioner import Preconditioner
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import XS, YS, flat, net, train


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("inside", [False, True])
def test_bfloat16_autocast(kind: str, inside: bool) -> None:
    """Backward outside the context as torch advises, and inside it as many loops have it."""
    model = problems.model(
        ODEBlock(problems.field(), gradient=kind, method="rk4", options={"steps": 4})
    ).float()
    exact = copy.deepcopy(model)
    optimizer = SNOpt(model, 0.02, rule="paper", refresh_every=2)
    x, y = XS.float(), YS.float()
    problems.squares(y)(exact(x)).backward()
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = problems.squares(y)(model(x).float())
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        if step == 0:
            got, want = problems.gradients(model), problems.gradients(exact)
            assert float((got - want).norm() / want.norm()) < 0.05
        optimizer.step()
    assert flat(model).isfinite().all()
    for pair in optimizer.factors().values():
        for factor in pair:
            assert factor.dtype == torch.float32
            assert factor.isfinite().all()
            assert factor.abs().sum() > 0


@pytest.mark.parametrize("rule", ["adam", "paper", "kfac"])
@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
def test_the_default_dtype_is_not_that_of_the_model(rule: str, basis: str) -> None:
    found = []
    for default in (torch.float32, torch.float64, torch.bfloat16):
        model = problems.model(ODEBlock(problems.field(), method="rk4", options={"steps": 2}))
        model = model.float()
        torch.set_default_dtype(default)
        try:
            optimizer = SNOpt(model, 0.02, rule=rule, basis=basis, refresh_every=2)
            for _ in range(4):
                optimizer.zero_grad()
                problems.squares(YS.float())(model(XS.float())).backward()
                optimizer.step()
            optimizer.eval()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(flat(model))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["adam", "paper", "kfac", "samples", "outputs", "products"])
def test_steps_within_autocast_are_those_without(rule: str, half: torch.dtype) -> None:
    """Of small gradients too, whose squares are zero in half precision."""
    settings: dict[str, Any] = {"rule": rule}
    if rule in ("samples", "outputs", "products"):
        settings = {"rule": "gauss_newton", "rows": rule}
        if rule == "products":
            settings |= {"rows": "outputs", "memory": 1}
    found = []
    for inside in (False, True):
        model = net(steps=2).float()
        optimizer = SNOpt(model, 0.02, **settings)
        for _ in range(4):
            optimizer.zero_grad()
            outputs = model(XS.float())
            loss = problems.squares(YS.float())(outputs) * 1e-3
            with torch.autocast("cpu", dtype=half, enabled=inside):
                if "rows" in settings:
                    optimizer.curvature_pass(outputs, "gaussian", targets=YS.float(), loss=loss)
            loss.backward()
            with torch.autocast("cpu", dtype=half, enabled=inside):
                optimizer.step()
        found.append(flat(model))
    assert torch.equal(*found)


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Conv1d(3, 4, 2, padding=1)])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0])])
def test_outer_products_within_autocast_are_those_without(
    module: nn.Module, weights: Tensor | None
) -> None:
    layer = layer_of("", module)
    assert layer is not None
    z = torch.rand(2, 3) if isinstance(module, nn.Linear) else torch.rand(2, 3, 5)
    g = 1e-5 * module(z).detach()
    found = []
    for inside in (False, True):
        with torch.autocast("cpu", dtype=torch.float16, enabled=inside):
            moments = layer.moments(z, g, None, weights=weights)[:2]
            found.append([*moments, *layer.per_sample_outer_products([(z, g)])])
    assert all(map(torch.equal, *found))


def test_changes_predicted_within_autocast_are_those_without() -> None:
    model = net(steps=2).float()
    optimizer = SNOpt(model, 0.02, rule="paper")
    train(model, optimizer, 1, XS.float(), YS.float())
    moves: dict[Tensor, Tensor] = {p: 1e-4 * p.detach() for p in model.parameters()}
    found = []
    for inside in (False, True):
        with torch.autocast("cpu", dtype=torch.float16, enabled=inside):
            found.append(predicted_change(cast(Preconditioner, optimizer.method), moves, 0.0))
    assert found[0] == found[1]
