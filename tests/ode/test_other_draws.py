"""Fields that draw random numbers which are not torch's."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock
from tests.support import problems

SOURCES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.random,
    "python": lambda: random,
    "numpy, held": lambda: np.random.default_rng(0),
    "numpy of old, held": lambda: np.random.RandomState(0),
    "python, held": lambda: random.Random(0),
}


class Noisy(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.inner, self.source, self.noise = problems.field(), source, True

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.inner(t, x) * (1 + 0.01 * self.source.random() if self.noise else 1)


@pytest.mark.parametrize("gradient", problems.GRADIENTS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_way_back_cannot_draw_them_again(source: str, gradient: str) -> None:
    field, (x, _) = Noisy(SOURCES[source]()), problems.data()
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=gradient)
    if gradient == "direct":
        block(x)
        return
    for _ in range(2):
        with pytest.warns(UserWarning, match="Noisy draws random numbers of NumPy or Python"):
            block(x)
    with torch.no_grad():
        block(x)


def test_a_field_is_looked_at_until_it_draws_none(monkeypatch: pytest.MonkeyPatch) -> None:
    field, (x, _) = Noisy(random), problems.data()
    field.noise = False
    block = ODEBlock(field, method="rk4", options={"steps": 2})
    block(x)
    monkeypatch.setattr(random, "getstate", lambda: pytest.fail("looked at again"))
    block(x)


def test_what_is_drawn_between_solves_is_no_fault() -> None:
    block, (x, _) = ODEBlock(problems.field()), problems.data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            block(x * (1 + 0.01 * np.random.rand() + 0.01 * random.random()))
