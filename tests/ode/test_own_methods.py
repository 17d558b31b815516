"""A method of a user's own: what it says it can is what it is asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt, SolverError
from snopt.ode.methods import Method, Problem
from snopt.ode.runge_kutta import TABLEAUS
from tests.support import problems

X = problems.data()[0]
SPAN = (0.2, 1.1)


class Heun(Method):
    """Equal steps of Heun's method: a whole backend."""

    name = "own heun"
    tableau = TABLEAUS["heun2"]

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def solve(self, problem: Problem) -> Tensor:
        y, states = problem.y0, [problem.y0]
        for start, end in pairwise(problem.times):
            ds = (end - start) / self.steps
            for i in range(self.steps):
                s = start + i * ds
                problem.attempt(s, y, ds)
                k = problem(s, y)
                y_next = y + ds / 2 * (k + problem(s + ds, y + ds * k))
                problem.accept(s, y, ds)
                y = y_next
            states.append(y)
        return torch.stack(states)


class Stuck(Heun):
    name = "stuck"

    def solve(self, problem: Problem) -> Tensor:
        problem.attempt(problem.times[0], problem.y0, 0.5)
        raise problem.failure("step underflow", "nothing moves")


class Silent(Method):
    """Tells of no steps."""

    name = "silent"
    reports_steps = differentiable = False
    options = frozenset({"order"})

    def solve(self, problem: Problem) -> Tensor:
        assert problem.options == {"order": 3}
        return Heun(4).solve(problem)


def run(block: nn.Module, field: nn.Module, *t: Any) -> list[Tensor]:
    x = X.clone().requires_grad_()
    y = block(x, *t)
    found: Any = torch.autograd.grad(y.square().sum(), [x, *field.parameters()])
    return [y.detach(), *found]


def train(method: Any, gradient: str, **settings: Any) -> tuple[dict[str, Any], list[Tensor]]:
    torch.manual_seed(0)
    field = problems.field()
    model = ODEBlock(field, SPAN, method=method, gradient=gradient, **settings)
    optimizer = SNOpt(model, lr=0.1, basis="curvature")
    model(X).square().mean().backward()
    optimizer.step()
    return optimizer.factors(), [p.detach() for p in field.parameters()]


@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]])
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradients_are_those_through_its_operations(
    gradient: str, span: tuple[float, float]
) -> None:
    field = problems.field()
    got = run(ODEBlock(field, span, method=Heun(5), gradient=gradient), field)
    same = {"method": "heun2", "options": {"step_size": 0.9 / 5}}

    def theirs(x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint(field, x, torch.tensor(span, dtype=x.dtype), **same)
        return states[-1]

    torch.testing.assert_close(got, run(theirs, field), rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint", "adjoint-seminorm"])
def test_curvature_and_a_step_are_those_of_the_same_steps_by_name(gradient: str) -> None:
    got = train(Heun(6), gradient)
    want = train("heun2", gradient, options={"steps": 6})
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_states_at_every_time() -> None:
    field, times = problems.field(), [0.2, 0.5, 1.1]
    got = ODEBlock(field, method=Heun(3), gradient="checkpoint")
    want = ODEBlock(field, method="heun2", options={"steps": 3}, gradient="checkpoint")
    torch.testing.assert_close(run(got, field, times), run(want, field, times))
    assert got.nfe_forward == want.nfe_forward


def test_what_it_cannot_do_is_refused() -> None:
    field = problems.field()
    with pytest.raises(ValueError, match=r"'silent' does not work.*choose gradient='adjoint'"):
        ODEBlock(field, method=Silent(), gradient="direct", options={"order": 3})
    with pytest.raises(ValueError, match=r"repeats single steps, which 'silent'.*dopri5"):
        ODEBlock(field, method=Silent(), gradient="checkpoint", options={"order": 3})
    with pytest.raises(ValueError, match=r"step_size: not known to 'own heun'"):
        ODEBlock(field, method=Heun(2), options={"step_size": 0.1})
    with pytest.raises(ValueError, match=r"steps=2 needs an explicit .*'own heun'; choose one of"):
        ODEBlock(field, method=Heun(2), options={"steps": 2})
    with pytest.raises(ValueError, match=r"choose one of .*dopri5.*snopt.ode.methods.Method"):
        ODEBlock(field, method=Heun)  # type: ignore[arg-type]
    ODEBlock(field, method=Silent(), options={"order": 3})(X).sum().backward()


def test_its_failures_are_the_blocks() -> None:
    field = problems.field()
    with pytest.raises(SolverError, match=r"step underflow at t = 1.1 .*nothing moves") as e:
        ODEBlock(field, SPAN[::-1], method=Stuck(1))(X)
    assert e.value.dt == -0.5
    with pytest.raises(SolverError, match=r"too many steps .*limit 3"):
        ODEBlock(field, SPAN, method=Heun(4), options={"max_steps": 3})(X)


def test_a_block_shows_its_method() -> None:
    assert "method='own heun'" in repr(ODEBlock(problems.field(), method=Heun(2)))
