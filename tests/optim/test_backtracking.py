"""Steps taken back by half: when, how far, and what bounds the next ones."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from snopt import SNOpt
from snopt.optim.backtracking import Backtracking
from tests.support.classifiers import Classifier, backward, gauss_newton, series


def searched(errors: float = 2.0) -> tuple[nn.Parameter, Backtracking]:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    return p, Backtracking({"p": p}, errors)


def step(p: nn.Parameter, search: Backtracking, move: float) -> None:
    search.remember()
    with torch.no_grad():
        p.add_(move)
        search.shorten()


def stepped(errors: float = 2.0) -> tuple[nn.Parameter, Backtracking]:
    """After a step from zeros, whose losses were LOW, to ones."""
    p, search = searched(errors)
    assert not halve(search, LOW)
    step(p, search, 1.0)
    return p, search


def halve(search: Backtracking, losses: Tensor) -> bool:
    with torch.no_grad():
        return search.halve(losses)


LOW = torch.linspace(0.9, 1.1, 8)
"""Mean 1, standard error 0.024."""


@pytest.mark.parametrize("value", [-0.5, 0.3, 1.0])
def test_what_is_nearer_than_the_step_led_is_judged_as_a_part_of_it(value: float) -> None:
    p, search = stepped()
    p.data.fill_(value)  # a projection, say
    assert halve(search, LOW + 5)
    assert p.detach().tolist() == [value / 2] * 3


def test_parameters_that_were_written_to_stay() -> None:
    p, search = stepped()
    p.data.fill_(40.0)
    assert not halve(search, LOW + 5)
    assert p.detach().tolist() == [40.0] * 3
    step(p, search, 2.0)  # the next step may have any length, and is judged as any other
    assert p.detach().tolist() == [42.0] * 3
    assert halve(search, LOW + 10)


def test_an_infinite_limit_goes_back_for_no_rise() -> None:
    p, search = searched(math.inf)
    one = torch.ones(1)  # a single sample has no spread
    assert not halve(search, one)
    step(p, search, 1.0)
    assert not halve(search, 3 * one)


@pytest.mark.parametrize(
    ("losses", "halved"),
    [
        (LOW - 0.5, False),
        (LOW + 0.06, False),  # 1.7 standard errors of the difference
        (LOW + 0.08, True),  # 2.3
        (LOW + 5, True),
        (torch.tensor([1.0] * 7 + [9.0]), False),  # one sample says nothing
        (LOW * math.nan, True),
        (LOW * math.inf, True),
    ],
)
def test_a_step_is_halved_where_the_loss_rose_beyond_chance(losses: Tensor, halved: bool) -> None:
    p, search = stepped()
    assert halve(search, losses) is halved
    assert torch.equal(p.detach(), torch.full_like(p, 0.5 if halved else 1.0))
    assert search.halvings == int(halved)


def test_without_a_step_there_is_nothing_to_halve() -> None:
    p, search = searched()
    assert not halve(search, LOW)
    assert not halve(search, LOW + 5)
    step(p, search, 0.0)
    assert not halve(search, LOW + 50)


def test_the_fourth_rise_in_a_row_is_believed() -> None:
    p, search = stepped()
    assert [halve(search, LOW + 5) for _ in range(4)] == [True, True, True, False]
    assert torch.equal(p.detach(), torch.full_like(p, 0.125))
    step(p, search, 0.01)
    assert not halve(search, LOW + 5)


def test_steps_grow_again_from_the_length_that_stood() -> None:
    p, search = stepped()
    assert halve(search, LOW + 5)
    assert not halve(search, LOW)
    ends = [p[0].item()]
    for _ in range(3):
        step(p, search, 10.0)
        ends.append(p[0].item())
        assert not halve(search, LOW)
    moved = [b - a for a, b in itertools.pairwise(ends)]
    assert moved == pytest.approx([0.5, 0.75, 1.125])


def test_a_loss_that_is_no_number_is_not_what_later_ones_are_held_to() -> None:
    p, search = searched()
    halve(search, LOW)
    halve(search, LOW * math.nan)
    step(p, search, 1.0)
    assert not halve(search, LOW)


def test_infinity_lets_every_step_stand() -> None:
    for losses in (LOW + 1e9, LOW * math.inf, LOW * math.nan):
        _, search = stepped(math.inf)
        assert not halve(search, losses)


# -- in an optimizer -------------------------------------------------------------------------------


def overshooting(backtrack: float) -> tuple[nn.Module, SNOpt]:
    model = Classifier()
    with torch.no_grad():
        model.head.weight.mul_(0.02)  # small gradients ask for steps far beyond where they hold
    return model, gauss_newton(model, lr=3.0, damping=1e-8, momentum=0.0, backtrack=backtrack)


def losses_of(model: nn.Module, optimizer: SNOpt, steps: int) -> list[float]:
    x, y = series(count=12)
    found = []
    for _ in range(steps):
        backward(model, optimizer, x, y)
        found.append(float(nn.functional.cross_entropy(model(x), y).detach()))
        optimizer.step()
    return found


def test_steps_that_overshoot_are_halved_until_they_do_not() -> None:
    free = losses_of(*overshooting(math.inf), steps=25)
    model, optimizer = overshooting(2.0)
    held = losses_of(model, optimizer, steps=25)
    assert max(free) > 3 * free[0]
    assert held[-1] < 0.1 * free[-1]
    assert optimizer.diagnostics()["steps_halved"] > 0


def test_a_run_resumed_between_halvings_goes_on_the_same() -> None:
    model, optimizer = overshooting(2.0)
    while optimizer.diagnostics()["steps_halved"] == 0:
        losses_of(model, optimizer, steps=1)
    twin = copy.deepcopy(model)
    again = gauss_newton(twin, lr=3.0, damping=1e-8, momentum=0.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses_of(model, optimizer, steps=6) == losses_of(twin, again, steps=6)
    # A first step's gradients are autograd's, a later one's sums of rows.
    assert optimizer.diagnostics() == pytest.approx(again.diagnostics(), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_bound_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="backtrack"):
        gauss_newton(Classifier(), backtrack=value)
    with pytest.raises(ValueError, match=r"backtrack=2\.0: rule='adam' has no such setting"):
        SNOpt(Classifier(), rule="adam", backtrack=2.0)
