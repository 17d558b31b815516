"""At the edges of a solve: zero parts, empty or broken inputs, times, samples, one answer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS

import snopt.ode.times
from snopt import ODEBlock, SNOpt, SolverError
from snopt.ode.integrate import Solver
from snopt.ode.packing import Layout, batch_size
from tests.support import problems
from tests.support.problems import GRADIENTS


class Oscillator(nn.Module):
    """x' = v, v' = f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        return v, self.net(x)


class Flow(Oscillator):
    """A continuous normalizing flow with the exact divergence."""

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_(True)
            slope = self.net(z)
            trace = sum(
                torch.autograd.grad(slope[:, i].sum(), z, create_graph=True)[0][:, i]
                for i in range(2)
            )
        return slope, -trace[:, None]


ZERO_PARTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "velocity": (Oscillator, (4, 2)),
    "log-density": (Flow, (4, 1)),
}


@pytest.mark.parametrize("method", [m for m in SOLVERS if Solver(m).adaptive])
@pytest.mark.parametrize("case", ZERO_PARTS)
def test_a_part_that_starts_at_zero(case: str, method: str) -> None:
    """Autograd through torchdiffeq's own solve that lands on the end, as `direct` does."""
    make, shape = ZERO_PARTS[case]
    torch.manual_seed(0)
    field, x = make().double(), torch.randn(4, 2, dtype=torch.float64)
    zero = torch.zeros(shape, dtype=torch.float64)
    t, tolerance = torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-6
    block = ODEBlock(field, method=method, rtol=tolerance, atol=tolerance, gradient="direct")

    def theirs(state: tuple[Tensor, Tensor]) -> Any:
        states = torchdiffeq.odeint(
            field,
            state,
            t,
            rtol=tolerance,
            atol=tolerance,
            method=method,
            options={"step_t": t[1:]},
        )
        return tuple(part[-1] for part in states)

    found = []
    for solve in (block, theirs):
        field.zero_grad()
        start = x.clone().requires_grad_()
        a, b = solve((start, zero))
        (a.square().sum() + b.sum()).backward()
        found.append((a, b, start.grad, problems.gradients(field)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_curvature_with_a_part_that_starts_at_zero() -> None:
    x, zero = torch.randn(4, 2, requires_grad=True), torch.zeros(4, 2)
    field = Oscillator()
    optimizer = SNOpt(
        field_model := nn.ModuleList([ODEBlock(field, gradient="direct")]), 0.01, rule="paper"
    )
    a, b = field_model[0]((x, zero))
    (a.square().sum() + b.square().sum()).backward()
    optimizer.step()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert optimizer.diagnostics()["refresh_failures"] == 0
    assert all(f.isfinite().all() for pair in optimizer.factors().values() for f in pair)


def test_the_norm_has_no_gradient() -> None:
    flat = torch.zeros(6, requires_grad=True)
    layout = Layout([torch.Size([3]), torch.Size([0]), torch.Size([3])])
    assert layout.norm(flat).item() == 0.0
    assert not layout.norm(flat).requires_grad


# -- one answer ------------------------------------------------------------------------------------

METHODS = ("dopri5", "bosh3", "dopri8")


@pytest.mark.parametrize(
    ("kind", "method"),
    [pair for pair in product(GRADIENTS, METHODS) if pair != ("checkpoint", "dopri8")],
)
def test_evaluation_gives_the_output_of_training(kind: str, method: str) -> None:
    x, _ = problems.data()
    block = ODEBlock(problems.field(), (0.0, 2.0), method=method, gradient=kind)
    for times in (None, [0.0, 0.3, 1.7], [1.0, 0.4, 0.0]):
        want = block(x, times)
        with torch.no_grad():
            assert torch.equal(block(x, times), want)
            assert torch.equal(block.eval()(x, times), want)
        block.train()


class Until(nn.Module):
    """A field that is not defined past its end."""

    def __init__(self, end: float, speed: float, error: type[Exception]) -> None:
        super().__init__()
        self.end, self.speed, self.error = end, nn.Parameter(torch.tensor(speed)), error

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if t > self.end:
            raise self.error(f"t = {t}")
        return -self.speed * x


@pytest.mark.parametrize("kind", ["checkpoint", "direct"])
def test_a_field_is_not_evaluated_past_the_end(kind: str) -> None:
    for end, speed in ((1.0, 1.0), (0.3, 1e-4), (1e-3, 1.0)):  # slow: the first step is long
        block = ODEBlock(Until(end, speed, ValueError), (0.0, end), gradient=kind)
        x = torch.ones(2, 1, requires_grad=True)
        want = block(x)
        want.sum().backward()
        with torch.no_grad():
            assert torch.equal(block(x), want)


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_the_adjoint_says_that_it_steps_past_the_end(error: type[Exception]) -> None:
    block = ODEBlock(Until(1.0, 1.0, error), gradient="adjoint")
    with pytest.raises(error) as caught:
        block(torch.ones(2, 1))
    assert "past the end" in caught.value.__notes__[0]
    assert "gradient='direct'" in caught.value.__notes__[0]


# -- samples ---------------------------------------------------------------------------------------


def test_the_first_dimension_is_the_sample() -> None:
    x = torch.zeros
    for state, count in (
        (x(5), 5),
        (x(5, 1), 5),
        (x(0, 3), 0),
        (x(()), 1),
        ((x(5), x(5, 2)), 5),
        ((x(1, 3), x(5, 2)), 5),
        ((x(()), x(5)), 5),
        ((x(1), x(1, 2)), 1),
    ):
        assert batch_size(state) == count


class PerSample(nn.Module):
    """One number per sample, with or without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, t: Tensor, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return self(t, x[0]), torch.zeros_like(x[1])
        column = x.unsqueeze(-1) if x.ndim == 1 else x
        return self.b(torch.tanh(self.a(column))).reshape(x.shape)


@pytest.mark.parametrize("rule", ["paper", "kfac", "adam"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_curvature_of_one_number_per_sample(kind: str, rule: str) -> None:
    """(N,), and a tuple that begins with it, are (N, 1)."""
    x = torch.randn(6, dtype=torch.float64)
    found = []
    for form in ("column", "vector", "tuple"):
        torch.manual_seed(0)
        block = ODEBlock(PerSample().double(), gradient=kind, options={"steps": 3})
        optimizer = SNOpt(block, 0.1, rule=rule)
        for _ in range(3):
            optimizer.zero_grad()
            start = {"column": x[:, None], "vector": x, "tuple": (x, x)}[form]
            end = block(start)
            end = end if isinstance(end, Tensor) else end[0]
            (end.square().mean()).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in block.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", ["paper", "kfac", "adam"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_single_sample_without_a_batch_dimension(kind: str, rule: str) -> None:
    """(D,), which the layers take whole, is (1, D)."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.net(x)

    x, found = torch.randn(3, dtype=torch.float64), []
    for start in (x[None], x):
        torch.manual_seed(0)
        block = ODEBlock(Whole().double(), gradient=kind, options={"steps": 3})
        optimizer = SNOpt(block, 0.1, rule=rule, refresh_every=2)
        for _ in range(4):
            optimizer.zero_grad()
            block(start).square().mean().backward()
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in block.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


# -- inputs and times ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adaptive", "steps"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_an_empty_batch_passes(kind: str, solver: str) -> None:
    options = {} if solver == "adaptive" else {"steps": 2}
    x = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    block = ODEBlock(problems.field(), gradient=kind, options=options)
    y = block(x)
    assert y.shape == (0, 3)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in block.parameters())
    pair = ODEBlock(Oscillator(), gradient=kind, options=options)
    assert [part.shape for part in pair((torch.zeros(0, 2), torch.zeros(0, 2)))] == [(0, 2)] * 2


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"step_size": 0.5}])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_broken_input_is_blamed(kind: str, options: dict[str, Any], bad: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    x[2, 1] = float(bad)
    method = "rk4" if options else "dopri5"
    block = ODEBlock(problems.field(), method=method, gradient=kind, options=options)
    name = {"nan": "NaN", "inf": "infinity"}[bad]
    for times in (None, [0.0, 1.0]):
        with pytest.raises(SolverError, match=f"initial state holds {name}, in 1 of 12") as caught:
            block(x, times)
        assert caught.value.reason == "non-finite input"
        assert "stiff" not in str(caught.value)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, float("inf")], "finite"),
        ([0.0, float("nan")], "finite"),
        ([0.0], r"\(T,\) with T >= 2"),
        (0.5, r"\(T,\) with T >= 2"),
        (torch.rand(5, 3), "times of their own"),
        ([0.0, 0.0], "strictly"),
        ([0.0, 1.0, 0.5], "strictly"),
        ([0.0, torch.tensor(1.0, requires_grad=True)], "detach"),
        (["a", "b"], "sequence of times"),
        (torch.zeros(2, dtype=torch.complex64), "real numbers"),
    ],
)
def test_wrong_times_are_refused(times: Any, message: str) -> None:
    for options in ({}, {"steps": 2}):
        with pytest.raises((TypeError, ValueError), match=message):
            ODEBlock(problems.field(), options=options)(problems.data()[0], times)


def test_times_of_any_kind() -> None:
    block, (x, _) = ODEBlock(problems.field()), problems.data()
    want = block(x, [0.0, 1.0])
    whole = torch.tensor([0, 1])
    for times in ([0, 1], (0.0, 1.0), whole, whole.float(), np.array([0.0, 1.0]), [whole[0], 1]):
        assert torch.equal(block(x, times), want)
    torch.set_default_dtype(torch.float32)
    assert snopt.ode.times.times_of([0.1, 0.7]).tolist() == [0.1, 0.7]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0.0, nn.Parameter(torch.tensor(1.0))), r"snopt\.Horizon"),
        (torch.tensor([0.0, 1.0], requires_grad=True), r"snopt\.Horizon"),
        ((0.0, 0.5, 1.0), r"two different.*block\(x, t\)"),
        ((1.0,), "two different"),
        (1.0, r"start and end time, e\.g\. \(0\.0, 1\.0\)"),
        (("a", "b"), "two numbers"),
        ((0.0, float("nan")), "finite"),
    ],
)
def test_wrong_spans_are_refused(span: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ODEBlock(problems.field(), span)


@pytest.mark.parametrize("name", ["steps", "max_steps"])
@pytest.mark.parametrize(
    "value", [0, -1, True, False, 2.5, float("nan"), float("inf"), "3", "many", [3], 0.0]
)
def test_counts_of_steps_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*whole number >= 1"):
        ODEBlock(problems.field(), options={name: value})


def test_whole_numbers_of_other_types_count_steps() -> None:
    for value in (3.0, np.int64(3), torch.tensor(3)):
        assert Solver(steps=value).steps == 3
        assert isinstance(Solver(steps=value).steps, int)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_devices_without_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are then of single precision, in the solver too."""
    assert snopt.ode.times.time_dtype(torch.device("mps")) == torch.float32
    assert snopt.ode.times.time_dtype(torch.device("cpu")) == torch.float64
    field, x = problems.field().float(), problems.data()[0].float()
    block = ODEBlock(field, gradient=kind)
    want = block(x)
    real, seen = torchdiffeq.odeint, []

    def odeint(function: Any, y0: Tensor, t: Tensor, **keywords: Any) -> Any:
        seen.append((t.dtype, keywords["options"].get("dtype")))
        return real(function, y0, t, **keywords)

    monkeypatch.setattr(torchdiffeq, "odeint", odeint)
    monkeypatch.setattr(snopt.ode.times, "_WITHOUT_FLOAT64", {"cpu"})
    got = block(x)
    got.sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_slopes_that_are_no_numbers_are_not_called_stiff(kind: str) -> None:
    class Root(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x * torch.sqrt(1 - t)

    block = ODEBlock(Root(), (0.0, 2.0), gradient=kind)
    with pytest.raises(SolverError, match="slopes are NaN") as caught:
        block(torch.ones(2, 1))
    assert caught.value.reason == "non-finite state"
    assert "stiff" not in str(caught.value)
    block.t_span = (0.0, 1.0)
    if kind in ("checkpoint", "direct"):
        torch.testing.assert_close(
            block(torch.ones(2, 1)), torch.full((2, 1), float(np.exp(2 / 3))), rtol=1e-2, atol=0
        )
    else:
        with pytest.raises(SolverError, match=r"steps past it.*gradient='direct'"):
            block(torch.ones(2, 1))
