"""Outputs that a loss leaves out cost Gauss-Newton neither rows nor backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import GaussNewton, SNOpt
from tests.support.jacobians import dense_step
from tests.support.output_steps import MODELS, N, inputs, like, made, same, step

COUNTS = (2, 0, 1, 2, 1)
"""Outputs that count, by sample."""


def masked(kind: str) -> tuple[Any, int, Tensor, Callable[[Tensor], Tensor]]:
    """A model, its dimension of samples, targets, and a loss of some of each sample's outputs."""
    model, dim = made(kind)
    y = like(model(inputs()))
    mask = torch.zeros_like(y.movedim(dim, 0)).flatten(1)
    for row, count in zip(mask, COUNTS, strict=True):
        row[torch.randperm(len(row), generator=torch.Generator().manual_seed(3))[:count]] = 1.0
    shape = y.movedim(dim, 0).shape
    mask = mask.view(shape).movedim(0, dim)
    return model, dim, y, lambda f: (mask * (f.view_as(y) - y).square()).sum() / 4


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_is_the_dense_solution(kind: str) -> None:
    model, dim, y, loss = masked(kind)
    expected = dense_step(model, lambda m: m(inputs()), loss)
    same(step(model, inputs(), loss, targets=y, batch_dim=dim), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_and_passes_are_those_of_outputs_that_count(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dim, y, loss = masked(kind)
    optimizer = GaussNewton(model)
    outputs = model(inputs())
    value = loss(outputs)
    passes = []
    grad = torch.autograd.grad

    def counted(outputs: Tensor, *args: Any, **options: Any) -> Any:
        if options.get("is_grads_batched"):
            passes.append(len(args[1]))
        return grad(outputs, *args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=value, batch_dim=dim)
    assert len(optimizer.method._batch.rows) == sum(COUNTS)  # type: ignore[attr-defined]
    if kind in ("few outputs", "many outputs", "in place", "convolution", "direct"):
        assert passes == [max(COUNTS)]


@pytest.mark.parametrize("kind", ["few outputs", "norm", "checkpoint"])
def test_a_loss_of_no_outputs_moves_nothing(kind: str) -> None:
    model, dim = made(kind)
    y = like(model(inputs()))
    found = step(model, inputs(), lambda f: 0.0 * (f - y).sum(), targets=y, batch_dim=dim)
    assert float(found.norm()) == 0


def test_what_fits_into_memory_is_counted_by_outputs_that_count() -> None:
    model, _, y, loss = masked("few outputs")
    numbers = sum(p.numel() for p in model.parameters())
    for memory, exact in ((8 * sum(COUNTS) * numbers, True), (8 * N * numbers, False)):
        optimizer = GaussNewton(model, memory=memory)
        outputs = model(inputs())
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss(outputs))
        assert (optimizer.method._batch.rows is not None) is exact  # type: ignore[attr-defined]
        optimizer.close()


def test_outputs_that_the_loss_is_not_made_of_are_told() -> None:
    model = nn.Linear(2, 1)
    optimizer = SNOpt(model, rule="gauss_newton")
    outputs = model(torch.randn(4, 2))
    optimizer.curvature_pass(torch.cat([outputs, outputs]), "gaussian", targets=torch.zeros(8, 1))
    outputs.square().mean().backward()
    with pytest.raises(RuntimeError, match="with the outputs that the loss is made of"):
        optimizer.step()
