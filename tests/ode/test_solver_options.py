"""Options of torchdiffeq: as its own odeint and odeint_adjoint take them, or refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torchdiffeq._impl.dopri5 import Dopri5Solver
from torchdiffeq._impl.odeint import SOLVERS

from snopt import ODEBlock
from snopt.ode.integrate import integrate
from tests.support import problems


class Switched(nn.Module):
    """Another slope once time has passed 0.4."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = problems.field()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        slope: Tensor = self.inner(t, x)
        return slope if t < 0.4 else 3.0 * slope


def largest(x: Tensor) -> Tensor:
    return x.abs().max()


def grid(function: Any, y0: Tensor, t: Tensor) -> Tensor:
    share = torch.linspace(0, 1, 8, dtype=t.dtype) ** 2
    return t[0] + (t[-1] - t[0]) * share


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "jump_t": ("dopri5", {"jump_t": torch.tensor([0.4], dtype=torch.float64)}),
    "step_t": ("dopri5", {"step_t": torch.tensor([0.25, 0.4], dtype=torch.float64)}),
    "norm": ("dopri5", {"norm": largest}),
    "steps": ("dopri5", {"first_step": 0.07, "max_step": 0.11, "safety": 0.8, "ifactor": 3.0}),
    "grid": ("rk4", {"grid_constructor": grid}),
    "perturb": ("rk4", {"step_size": 0.1, "perturb": True}),
}


def run(solve: Any, field: nn.Module) -> Tensor:
    x, y = problems.data()
    x.requires_grad_()
    field.zero_grad()
    end = solve(x)
    problems.squares(y)(end).backward()
    return torch.cat([end.detach().reshape(-1), x.grad.reshape(-1), problems.gradients(field)])


# With jump_t and step_t odeint_adjoint loses the sign of time on its way back through (1, 0).
SPANS = [(case, (0.0, 1.0)) for case in CASES] + [
    (case, (1.0, 0.0)) for case in CASES if case not in ("jump_t", "step_t")
]


@pytest.mark.parametrize(("case", "span"), SPANS)
def test_adjoint_honours_options_as_torchdiffeq(case: str, span: tuple[float, float]) -> None:
    method, options = CASES[case]
    field: nn.Module = problems.field() if case == "norm" else Switched()
    t = torch.tensor(span, dtype=torch.float64)

    def theirs(x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint_adjoint(
            field, x, t, rtol=1e-4, atol=1e-4, method=method, options=options,
        )  # fmt: skip
        return states[-1]

    block = ODEBlock(field, span, method=method, rtol=1e-4, atol=1e-4, options=options)
    torch.testing.assert_close(run(block, field), run(theirs, field), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("kind", ["adjoint-seminorm", "direct"])
def test_a_jump_in_both_directions(kind: str, span: tuple[float, float]) -> None:
    field = Switched()
    options = {"jump_t": torch.tensor([0.4], dtype=torch.float64)}
    block = ODEBlock(field, span, rtol=1e-9, atol=1e-9, gradient=kind, options=options)
    a, b = span
    middle = (a, 0.4 if a > b else 0.4 - 1e-12), (0.4, b) if a < b else (0.4 - 1e-12, b)
    blocks = [ODEBlock(field, s, rtol=1e-10, atol=1e-10, gradient="direct") for s in middle]
    torch.testing.assert_close(
        run(block, field), run(nn.Sequential(*blocks), field), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm", "direct"])
def test_a_jump_at_output_times(kind: str) -> None:
    field, times = Switched(), [0.0, 0.4, 1.0]

    def solve(jumps: list[float]) -> Tensor:
        options = {"jump_t": jumps}
        block = ODEBlock(field, rtol=1e-6, atol=1e-6, gradient=kind, options=options)
        return run(lambda x: block(x, times)[-1], field)

    torch.testing.assert_close(solve([0.0, 0.4, 1.0]), solve([0.4]), rtol=1e-4, atol=1e-6)


def test_a_list_of_jumps_has_all_digits() -> None:
    evaluations = []
    for jumps in ([0.4], torch.tensor([0.4], dtype=torch.float64)):
        block = ODEBlock(Switched(), rtol=1e-9, atol=1e-9, options={"jump_t": jumps})
        block(problems.data()[0])
        evaluations.append(block.nfe_forward)
    assert evaluations[0] == evaluations[1]


def test_the_norm_sees_the_parts_of_a_tuple() -> None:
    seen = []

    def norm(parts: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(parts)
        return torch.stack([p.abs().max() for p in parts]).max()

    class Pair(nn.Module):
        def forward(self, t: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return -x[0], -2 * x[1]

    ODEBlock(Pair(), options={"norm": norm})((torch.ones(2, 3), torch.ones(2, 1)))
    assert {tuple(p.shape for p in parts) for parts in seen} == {((2, 3), (2, 1))}


def test_direct_takes_the_steps_for_constants() -> None:
    """The gradient is that of the same steps, laid out by hand."""
    field = Switched()
    block = ODEBlock(field, rtol=1e-2, atol=1e-2, gradient="direct")
    kept: list[float] = []
    x, _ = problems.data()
    with torch.no_grad():
        integrate(
            field, x, torch.tensor([0.0, 1.0], dtype=torch.float64), block.solver,
            norm=lambda y: y.square().mean().sqrt(), exact_endpoint=True,
            on_step=lambda t, y, dt: kept.append(dt),
        )  # fmt: skip
    # One step of a given length each: max_step never cuts it, tolerance never refuses it.
    loose = [
        ODEBlock(field, (a, a + dt), rtol=1e9, atol=1e9, gradient="direct",
                 options={"first_step": dt})
        for a, dt in zip(
            torch.tensor([0.0, *kept], dtype=torch.float64).cumsum(0).tolist(), kept, strict=False
        )
    ]  # fmt: skip
    torch.testing.assert_close(
        run(block, field), run(nn.Sequential(*loose), field), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "scipy_solver", "gradient": "direct"}, "graph"),
        ({"gradient": "checkpoint", "options": {"jump_t": torch.tensor([0.4])}}, "jump_t"),
        ({"method": "rk4", "gradient": "checkpoint", "options": {"perturb": True}}, "perturb"),
        ({"method": "rk4", "options": {"steps": 3, "step_size": 0.1}}, "step_size"),
        ({"options": {"norm": "seminorm"}}, "adjoint-seminorm"),
        ({"options": {"grid_points": [0.5]}}, "grid_points"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ODEBlock(problems.field(), **settings)


def test_what_does_not_go_together_is_refused_where_it_was_replaced() -> None:
    x, _ = problems.data()
    block = ODEBlock(problems.field(), options={"jump_t": torch.tensor([0.4])})
    block.gradient = "checkpoint"
    with pytest.raises(ValueError, match="options: jump_t"):
        block(x)
    block.solver = dataclasses.replace(block.solver, method="dopri8", options={})
    with pytest.raises(ValueError, match="repeats single steps"):
        block(x)
    block.gradient = "checkpiont"
    with pytest.raises(ValueError, match="gradient='checkpiont'; choose one of adjoint"):
        block(x)


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm", "direct"])
def test_an_adaptive_method_of_a_later_torchdiffeq(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Dopri5Solver):  # type: ignore[misc]
        pass

    monkeypatch.setitem(SOLVERS, "later", Later)
    field = problems.field()
    block = ODEBlock(field, method="later", gradient=kind)
    assert block.solver.adaptive
    torch.testing.assert_close(
        run(block, field), run(ODEBlock(field, gradient=kind), field), rtol=2e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match="repeats single steps"):
        ODEBlock(field, method="later", gradient="checkpoint")
