"""A GradScaler, of which the optimizer was told or not."""

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


def test_grad_scaler_gives_the_factors_of_the_unscaled_loss() -> None:
    found = []
    for scaled in (False, True):
        model = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        optimizer = SNOpt(
            model, 0.02, rule="paper", refresh_every=2, grad_scaler=scaler if scaled else None
        )
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(problems.squares(YS)(model(XS))).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append((flat(model), optimizer.factors()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-8)
    for name, pair in found[0][1].items():
        for got, want in zip(pair, found[1][1][name], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_an_overflow_that_the_scaler_skips_leaves_nothing() -> None:
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = SNOpt(model, 0.02, rule="paper", grad_scaler=scaler)
    before = flat(model)
    (scaler.scale(model(XS).sum()) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(flat(model), before)
    optimizer.zero_grad()
    scaler.scale(problems.squares(YS)(model(XS))).backward()
    scaler.step(optimizer)
    assert optimizer.diagnostics()["refresh_failures"] == 0
    assert all(f.isfinite().all() for pair in optimizer.factors().values() for f in pair)


def test_what_is_no_scaler_is_refused() -> None:
    with pytest.raises(TypeError, match="grad_scaler=True: is not a GradScaler"):
        SNOpt(net(), grad_scaler=True)
