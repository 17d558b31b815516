"""The times at which stages are evaluated: within the solve, and the same when steps are repeated.

A field that jumps between a time and its neighbour shows every difference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.ode.gradients import GRADIENTS
from snopt.ode.methods.equal_steps import step_grid
from snopt.ode.runge_kutta import TABLEAUS, stage_times
from tests.support import problems

X = problems.data()[0]


class Jump(nn.Module):
    """Another field from ``at`` on."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at, self.before, self.after = at, problems.field(), problems.field()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.where(t < self.at, self.before(t, x), 3 * self.after(t, x).sin())


def gradients(y: Tensor, x: Tensor, field: nn.Module) -> Tensor:
    found = torch.autograd.grad(y.square().sum(), [x, *field.parameters()])
    return torch.cat([y.detach().flatten(), *(g.flatten() for g in found)])


def of_torchdiffeq(field: nn.Module, times: list[float], **how: Any) -> Tensor:
    x = X.clone().requires_grad_()
    t = torch.tensor(times, dtype=torch.float64)
    y = torchdiffeq.odeint(field, x, t, rtol=1e-3, atol=1e-3, **how)[-1]
    return gradients(y, x, field)


def of_block(field: nn.Module, times: list[float], kind: str, **how: Any) -> Tensor:
    x = X.clone().requires_grad_()
    y = ODEBlock(field, gradient=kind, **how)(x, times)[-1]
    return gradients(y, x, field)


def uneven(f: Any, y: Tensor, t: Tensor) -> Tensor:
    # 0.1 + 0.2 is no decimal: a step from it to its end misses that by a rounding.
    return torch.tensor([0.0, 0.1 + 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)


FIXED: dict[str, dict[str, Any]] = {
    "step_size": {"step_size": 0.1},
    "thirds": {"step_size": 1 / 3},
    "own grid": {"grid_constructor": uneven},
}


@pytest.mark.parametrize("at", [0.1 + 0.2, 0.5, 0.7, 1.0, 0.1 * 3, 0.1 * 7, 2 / 3])
@pytest.mark.parametrize("grid", FIXED)
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_a_jump_on_a_fixed_grid(method: str, grid: str, at: float) -> None:
    field, options = Jump(at), FIXED[grid]
    want = of_torchdiffeq(field, [0.0, 1.0], method=method, options=options)
    for kind in ("direct", "checkpoint"):
        got = of_block(field, [0.0, 1.0], kind, method=method, options=options)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "rk4"])
def test_a_jump_on_a_perturbed_grid(method: str) -> None:
    field, options = Jump(0.5), {"step_size": 0.1, "perturb": True}
    want = of_torchdiffeq(field, [0.0, 1.0], method=method, options=options)
    got = of_block(field, [0.0, 1.0], "direct", method=method, options=options)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"perturb.*choose gradient='direct'"):
        ODEBlock(field, method=method, gradient="checkpoint", options=options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
@pytest.mark.parametrize(
    ("span", "step_t"),
    [
        ((0.0, 0.5), None),
        ((0.5, 1.0), None),
        ((1.0, 0.5), None),
        ((0.5, 0.0), None),
        ((0.0, 1.0), [0.5]),
        ((1.0, 0.0), [0.5]),
        ((0.0, 1.0), [0.2, 0.5, 0.6]),
    ],
)
def test_a_jump_where_an_adaptive_step_ends(
    span: tuple[float, float], step_t: list[float] | None, method: str, dtype: torch.dtype
) -> None:
    """torchdiffeq evaluates just before a step's end, so that a jump there is not felt."""
    field, options = Jump(0.5).to(dtype), {} if step_t is None else {"step_t": step_t}
    found = []
    for kind in ("direct", "checkpoint"):
        x = X.to(dtype).requires_grad_()
        block = ODEBlock(field, span, method=method, gradient=kind, options=options)
        found.append(gradients(block(x), x, field))
    tolerance = 1e-10 if dtype is torch.float64 else 1e-4
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)
    if step_t is None and dtype is torch.float64:
        ends: dict[str, Any] = {
            "step_t": torch.tensor(span[1:], dtype=torch.float64),
            "norm": lambda y: y.detach().square().mean().sqrt(),
        }
        want = of_torchdiffeq(field, [*span], method=method, options=ends)
        torch.testing.assert_close(found[1], want, rtol=1e-10, atol=1e-12)


def test_a_jump_at_an_output_time() -> None:
    """Checkpoint lands on output times, as solves one after the other do."""
    field = Jump(0.5)
    x = X.clone().requires_grad_()
    halves = [ODEBlock(field, span, gradient="direct") for span in ((0.0, 0.5), (0.5, 1.0))]
    want = gradients(halves[1](halves[0](x)), x, field)
    got = of_block(field, [0.0, 0.5, 1.0], "checkpoint")
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.1, 0.8)])
@pytest.mark.parametrize("method", ["heun2", "rk4"])
def test_a_jump_between_equal_steps(method: str, span: tuple[float, float]) -> None:
    options = {"steps": 7}
    ((times, dt, _),) = step_grid(torch.tensor(span, dtype=torch.float64), 7)
    for at in {*times, *(time + dt for time in times)}:
        field = Jump(at)
        got = [
            of_block(field, [*span], kind, method=method, options=options)
            for kind in ("direct", "checkpoint")
        ]
        torch.testing.assert_close(got[1], got[0], rtol=1e-10, atol=1e-12)


# -- nothing is evaluated past the end ------------------------------------------------------------


class Until(nn.Module):
    """Ends at t = 1, with a slope that is no number after it; or starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen: list[float] = []

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.seen.append(float(t))
        return -self.w * x * torch.sqrt(1 - t) * torch.sqrt(t)


def past_the_end(steps: int, start: float, end: float) -> bool:
    ((times, dt, _),) = step_grid(torch.tensor([start, end], dtype=torch.float64), steps)
    return times[-1] + dt > end if dt > 0 else times[-1] + dt < end


def counts() -> list[int]:
    forwards = [n for n in range(2, 200) if past_the_end(n, 0.2, 1.0)]
    assert forwards
    return forwards[:2]


@pytest.mark.parametrize("steps", counts())
@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("method", ["heun2", "rk4"])
def test_the_last_stage_is_not_past_the_end(method: str, kind: str, steps: int) -> None:
    field = Until()
    block = ODEBlock(field, (0.2, 1.0), method=method, gradient=kind, options={"steps": steps})
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert max(field.seen) == 1.0
    grid = torch.linspace(0.2, 1.0, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(y, torchdiffeq.odeint(Until(), x, grid, method=method)[-1])
    assert field.w.grad is not None
    assert field.w.grad.isfinite()
    with torch.no_grad():
        assert torch.equal(block(x), y)
    assert float(block.grid(x).max()) == 1.0


def test_times_are_those_of_before_where_nothing_passes_the_end() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    for method in TABLEAUS:
        tableau = TABLEAUS[method]
        for span in ((0.0, 1.0), (1.0, 0.0), (0.0, 2.5), (-1.0, 1.0), (3.0, 7.0)):
            for steps in (1, 2, 3, 4, 5, 6, 8, 10, 16, 20, 32):
                ((times, dt, end),) = step_grid(torch.tensor(span, dtype=torch.float64), steps)
                rows = stage_times(times, dt, tableau, like, end)
                plain = stage_times(times, dt, tableau, like)
                assert torch.equal(rows[:-1], plain[:-1])
                assert torch.equal(rows, plain) or past_the_end(steps, *span)
                assert torch.allclose(rows, plain, rtol=1e-15, atol=1e-15)
