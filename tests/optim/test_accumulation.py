"""Gradient accumulation: micro-batches, equal or not, are one batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import flat


def build(kind: str, stem: bool = True) -> nn.Module:
    # Fixed steps: with error control every micro-batch would take steps of its own.
    block = ODEBlock(problems.field(), method="rk4", gradient=kind, options={"steps": 6})
    return problems.model(block)


@pytest.mark.parametrize(
    ("sizes", "kind", "rule"),
    [
        *(((1, 2, 5), kind, "paper") for kind in GRADIENTS),
        ((4, 4), "direct", "paper"),
        ((5, 3), "adjoint", "adam"),
        ((1, 2, 5), "direct", "adam"),
    ],
)
def test_micro_batches_are_one_batch(sizes: tuple[int, ...], kind: str, rule: str) -> None:
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    whole, parts = build(kind), build(kind)
    one, many = (
        SNOpt(m, 0.02, rule=rule, basis="curvature", refresh_every=2) for m in (whole, parts)
    )
    for step in range(4):
        one.zero_grad()
        problems.squares(y)(whole(x)).backward()
        one.step()
        many.zero_grad()
        for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
            (problems.squares(ys)(parts(xs)) * len(xs) / len(x)).backward()
        many.step()
        if step % 2 == 0:
            for name, pair in one.factors().items():
                for got, want in zip(many.factors()[name], pair, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert many.method.samples == pytest.approx(8)
        torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_an_unequal_last_batch(kind: str) -> None:
    """Every step scales by its own number of samples, at a refresh and in between."""
    model = build(kind)
    optimizer = SNOpt(model, 0.02, rule="paper", refresh_every=2)
    for count in (8, 3, 5, 8, 2):
        x, y = torch.randn(count, 5).double(), torch.randn(count, 2).double()
        optimizer.zero_grad()
        problems.squares(y)(model(x)).backward()
        optimizer.step()
        assert optimizer.method.samples == count


def test_repeating_a_batch_changes_no_factor() -> None:
    x, y = torch.randn(5, 5).double(), torch.randn(5, 2).double()
    found = []
    for times in (1, 3):
        model = build("adjoint")
        optimizer = SNOpt(model, 0.0, rule="paper")
        problems.squares(y.repeat(times, 1))(model(x.repeat(times, 1))).backward()
        optimizer.step()
        found.append(optimizer.factors())
    for name, pair in found[0].items():
        for got, want in zip(found[1][name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
