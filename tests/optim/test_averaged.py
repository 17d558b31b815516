"""Averaged weights: what they are, how they come and go, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

from snopt import SNOpt


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train(model: nn.Module, optimizer: SNOpt, steps: int, first: int = 0) -> list[list]:
    path = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()
        path.append(weights(model))
    return path


@pytest.mark.parametrize("rule", ["adam", "paper"])
@pytest.mark.parametrize("exponent", [0.0, 3.0, 20.0])
def test_averages_are_those_of_the_path_which_they_do_not_touch(rule, exponent) -> None:
    model, plain = net(), net()
    optimizer = SNOpt(model, 0.05, rule=rule, averaging=exponent)
    path = train(model, optimizer, 9)
    assert same(path[-1], train(plain, SNOpt(plain, 0.05, rule=rule, averaging=None), 9)[-1])
    expected = path[0]
    for t, point in enumerate(path[1:], start=2):
        share = (exponent + 1) / (exponent + t)
        expected = [(1 - share) * a + share * p for a, p in zip(expected, point, strict=True)]
    optimizer.eval()
    optimizer.eval()
    for found, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=1e-14)
    if exponent == 0.0:
        mean = [torch.stack(parts).mean(0) for parts in zip(*path, strict=True)]
        torch.testing.assert_close(weights(model), mean, rtol=1e-12, atol=1e-14)
    optimizer.train()
    assert same(weights(model), path[-1])


def test_the_default_averages_and_the_published_rule_does_not() -> None:
    model = net()
    optimizer = SNOpt(model)
    assert optimizer.averages
    end = train(model, optimizer, 3)[-1]
    optimizer.eval()
    assert not same(weights(model), end)
    other = net()
    optimizer = SNOpt(other, rule="paper")
    assert not optimizer.averages
    end = train(other, optimizer, 3)[-1]
    optimizer.eval()
    assert same(weights(other), end)
    train(other, optimizer, 1)  # no train() needed where nothing was put in place


@pytest.mark.parametrize("how", ["load_state_dict", "in place", "data"])
def test_weights_from_elsewhere_are_not_mixed_with_the_average(how) -> None:
    model, other = net(), nn.Sequential(*net())
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 5)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    if how == "load_state_dict":
        model.load_state_dict(other.state_dict())
    else:
        for p, new in zip(model.parameters(), other.parameters(), strict=True):
            if how == "data":
                p.data = new.detach().clone()
            else:
                with torch.no_grad():
                    p.copy_(new)
    optimizer.eval()
    assert same(weights(model), weights(other))
    optimizer.train()
    (after,) = train(model, optimizer, 1, first=5)
    optimizer.eval()
    assert same(weights(model), after)


@pytest.mark.parametrize("resumed", [False, True])
def test_weights_that_are_projected_after_each_step_are_averaged_so(resumed) -> None:
    model = net()
    optimizer = SNOpt(model, 0.05, averaging=3.0)
    expected: list[torch.Tensor] = []
    for t in range(1, 12):
        train(model, optimizer, 1, first=t)
        for p in model.parameters():
            p.data.clamp_(-0.2, 0.2)
        share = 4.0 / (3.0 + t)
        expected = expected or weights(model)
        expected = [a.lerp(p, share) for a, p in zip(expected, weights(model), strict=True)]
        if resumed and t == 6:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer.close()
            optimizer = SNOpt(model, 0.05, averaging=3.0)
            optimizer.load_state_dict(state)
    optimizer.eval()
    torch.testing.assert_close(weights(model), expected, rtol=1e-12, atol=1e-14)
    assert max(float(p.detach().abs().max()) for p in model.parameters()) <= 0.2


@pytest.mark.parametrize("rows", ["samples", "outputs"])
def test_a_step_that_is_taken_back_is_a_point_of_the_path(rows) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).unsqueeze(1)
    y = torch.sin(2 * x)
    settings = {"rows": rows, "damping": 1e-6, "trust": 1e9, "averaging": 3.0}
    optimizer = SNOpt(model, 2.0, rule="gauss_newton", **settings)
    expected: list[torch.Tensor] = []
    for t in range(1, 13):
        optimizer.zero_grad()
        outputs = model(x)
        loss = nn.functional.mse_loss(outputs, y)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        loss.backward()
        optimizer.step()
        expected = expected or weights(model)
        expected = [a.lerp(p, 4 / (3 + t)) for a, p in zip(expected, weights(model), strict=True)]
    assert optimizer.diagnostics()["steps_halved"] > 0
    optimizer.eval()
    torch.testing.assert_close(weights(model), expected, rtol=1e-10, atol=1e-12)


def test_a_state_that_is_saved_after_loading_weights_has_no_average_of_others() -> None:
    model, again = net(), net()
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 5)
    model.load_state_dict(net().state_dict())
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    fresh = SNOpt(again, 0.05)
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    for one in ((model, optimizer), (again, fresh)):
        train(*one, 3, first=5)
        one[1].eval()
    assert same(weights(model), weights(again))


def test_weights_that_are_written_at_the_averages_are_not_thrown_away_silently() -> None:
    """``p.data`` leaves no mark on a parameter; a NaN in the averages is none either."""
    model = net()
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 3)
    model[0].bias.data[0] = float("nan")
    optimizer.eval()
    assert model[0].bias[0].isnan()
    optimizer.train()
    optimizer.eval()
    for p in model.parameters():
        p.data.copy_(torch.ones_like(p))
    with pytest.raises(RuntimeError, match=r"changed between optimizer.eval\(\)"):
        optimizer.train()


def test_a_cleared_state_begins_again() -> None:
    model = net()
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 3)
    optimizer.state.clear()
    (after,) = train(model, optimizer, 1, first=3)
    optimizer.eval()
    assert same(weights(model), after)


def test_no_step_and_no_state_at_the_averages() -> None:
    model = net()
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 3)
    state = optimizer.state_dict()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"a step while .* call optimizer.train\(\) before"):
        train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match=r"state_dict\(\) while"):
        optimizer.state_dict()
    with pytest.raises(RuntimeError, match=r"load_state_dict\(\) while"):
        optimizer.load_state_dict(state)
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(RuntimeError, match=r"changed between optimizer.eval\(\)"):
        optimizer.train()


@pytest.mark.parametrize("model_first", [True, False])
def test_averages_go_on_after_loading_in_either_order(model_first) -> None:
    model, again = net(), net()
    optimizer = SNOpt(model, 0.05)
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, first=4)
    fresh = SNOpt(again, 0.05)
    if model_first:
        again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    if not model_first:
        again.load_state_dict(saved[0])
    train(again, fresh, 3, first=4)
    for one in (optimizer, fresh):
        one.eval()
    assert same(weights(model), weights(again))


def test_a_weight_that_is_frozen_stays_in_the_average_and_is_reached_by_it() -> None:
    model = net()
    optimizer = SNOpt(model, 0.05, averaging=3.0)
    train(model, optimizer, 3)
    model[3].requires_grad_(False)
    frozen = model[3].weight.detach().clone()
    train(model, optimizer, 200, first=3)
    optimizer.eval()
    torch.testing.assert_close(model[3].weight.detach(), frozen, rtol=1e-4, atol=1e-6)


def test_averages_of_half_precision_are_kept_in_single() -> None:
    model = net().bfloat16()
    optimizer = SNOpt(model, 1e-3)
    train(model, optimizer, 3)
    assert {entry["average"].dtype for entry in optimizer.state.values()} == {torch.float32}
    optimizer.eval()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_bad_exponents_are_refused() -> None:
    with pytest.raises(ValueError, match="averaging=-1"):
        SNOpt(net(), averaging=-1.0)
