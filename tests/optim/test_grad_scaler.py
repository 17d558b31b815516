"""A GradScaler that the optimizer was not told of."""

from __future__ import annotations

import warnings

import pytest
import torch

from snopt import SNOpt
from tests.support import problems
from tests.support.training import XS, YS, flat, net


@pytest.mark.parametrize(
    ("rule", "enabled"), [("paper", True), ("kfac", True), ("adam", True), ("paper", False)]
)
def test_a_grad_scaler_that_was_not_handed_over(rule: str, enabled: bool) -> None:
    """It is told once, where the steps are not those of the loss; Adam's are."""
    found = []
    for scaled in (False, enabled):
        model = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        optimizer = SNOpt(model, 0.02, rule=rule)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(problems.squares(YS)(model(XS))).backward()
                scaler.step(optimizer)
                scaler.update()
        assert [str(w.message).count("grad_scaler=scaler") for w in told] == [1] * (
            scaled and rule != "adam"
        )
        found.append(flat(model))
    same = torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-8)
    assert same == (rule == "adam" or not enabled)
