"""Precisions other than the default: autocast, and a default dtype that is not the model's."""

from __future__ import annotations

import copy

import pytest
import torch

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import XS, YS, flat


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
