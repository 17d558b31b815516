"""Names of earlier versions go on to work, and say what they are called now."""

import pytest
import torch
from torch import nn

import snopt
import snopt.dynamics
from snopt import SNOpt


def stepped(**settings) -> SNOpt:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizer = SNOpt(model, 0.01, **settings)
    model(torch.ones(5, 3)).square().mean().backward()
    optimizer.step()
    return optimizer


def values(optimizer: SNOpt) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_plain_is_fallback() -> None:
    with pytest.warns(DeprecationWarning, match="write fallback='adam'"):
        before = stepped(plain="adam", betas=(0.5, 0.9))
    now = stepped(fallback="adam", betas=(0.5, 0.9))
    other = stepped()
    for a, b in zip(values(before), values(now), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(values(now), values(other), strict=True))


def test_a_group_of_before() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    with pytest.warns(DeprecationWarning, match="fallback"):
        optimizer = SNOpt([{"params": model, "plain": "adam"}], rule="paper", fallback="adam")
    assert optimizer.param_groups[0]["fallback"] == "adam"
    assert "plain" not in optimizer.param_groups[0]


def test_a_state_of_before() -> None:
    optimizer, fresh = stepped(fallback="adam"), stepped(fallback="adam")
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["plain"] = group.pop("fallback")
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["fallback"] == "adam"


def test_check_is_kronecker_error() -> None:
    with pytest.warns(DeprecationWarning, match=r"snopt\.kronecker_error now"):
        assert snopt.check is snopt.kronecker_error
    with pytest.warns(DeprecationWarning, match="learned_scalars now"):
        assert snopt.dynamics.traces is snopt.dynamics.learned_scalars
    with pytest.raises(AttributeError, match="no attribute"):
        _ = snopt.chek
    with pytest.warns(DeprecationWarning, match="fallback"):
        assert stepped().coverage().plain.keys() == {"1.weight", "1.bias"}
