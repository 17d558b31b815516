"""An optimizer that is dropped leaves the model at once, without waiting for a collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt, SNOptPreconditioner
from tests.support import problems
from tests.support.problems import GRADIENTS

KINDS: dict[str, dict[str, Any]] = {
    "adam": {},
    "curvature": {"basis": "curvature"},
    "paper": {"rule": "paper"},
    "ggn": {"rule": "paper", "curvature": "ggn"},
    "samples": {"rule": "gauss_newton"},
    "outputs": {"rule": "gauss_newton", "rows": "outputs"},
}


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def build(gradient: str) -> nn.Sequential:
    torch.manual_seed(0)
    block = ODEBlock(problems.field(), method="rk4", options={"steps": 2}, gradient=gradient)
    return nn.Sequential(nn.Linear(3, 3), block, nn.Linear(3, 1)).double()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


# Gradients of samples' losses refuse adjoints when they are built.
PAIRS = [(k, g) for k in KINDS for g in GRADIENTS if k != "samples" or "adjoint" not in g]


@pytest.mark.parametrize("stage", ["built", "called", "answered", "stepped"])
@pytest.mark.parametrize(("kind", "gradient"), PAIRS)
def test_nobody_listens_to_a_model_without_its_optimizer(
    kind: str, gradient: str, stage: str
) -> None:
    model, x = build(gradient), problems.data()[0]
    optimizer = SNOpt(model, lr=0.0, **KINDS[kind])
    out = loss = torch.zeros(())
    if stage != "built":
        out = model(x)
        loss = out.square().mean()
        if kind in ("ggn", "samples", "outputs"):
            optimizer.curvature_pass(out, "gaussian", targets=torch.zeros_like(out), loss=loss)
    if stage in ("answered", "stepped"):
        loss.backward()
    if stage == "stepped":
        optimizer.step()
    del optimizer

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    block = model[1]
    assert isinstance(block, ODEBlock)
    before = block.nfe_curvature
    plain = build(gradient)
    expected = gradients(plain, plain(x).square().mean())
    if stage == "called":  # its graph is there still
        torch.testing.assert_close(gradients(model, loss), expected)
    torch.testing.assert_close(gradients(model, model(x).square().mean()), expected)
    assert block.nfe_curvature == before
    del out, loss
    assert not block.observers
    assert not block.listeners


@pytest.mark.parametrize("kind", [*KINDS, "tally"])
def test_a_closed_optimizer_stays_closed(kind: str) -> None:
    model, x = build("direct"), problems.data()[0]
    optimizer = SNOpt(model, **{**KINDS, "tally": {"rule": "paper", "basis": "gradient"}}[kind])
    saved = optimizer.state_dict()
    optimizer.close()
    optimizer.zero_grad()
    optimizer.load_state_dict(saved)
    block = model[1]
    assert isinstance(block, ODEBlock)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not block.observers
    assert not block.listeners
    model(x).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"^this optimizer was closed; build another SNOpt"):
        optimizer.step()


def test_a_closed_preconditioner_makes_no_step() -> None:
    model, x = build("direct"), problems.data()[0]
    preconditioner = SNOptPreconditioner(model, rule="paper", refresh_every=1)
    model(x).square().mean().backward()
    preconditioner.step()
    preconditioner.close()
    with pytest.raises(RuntimeError, match=r"^this optimizer was closed; build another SNOpt"):
        preconditioner.step()
