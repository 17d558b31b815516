"""Samples that take steps of their own: by a method of a few lines, and by torchode's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import Horizon, ODEBlock, SNOpt, SolverError, advise, gradient_error
from snopt.ode.methods import Method, Problem, Torchode
from snopt.ode.runge_kutta import TABLEAUS
from tests.support import problems, reference
from tests.support.training import distance, measured

X, Y = problems.data()
X = X * torch.tensor([0.1, 1, 3, 0.5, 6, 1, 2], dtype=X.dtype)[:, None]
SPAN = (0.2, 1.1)
COUNTS = torch.tensor([1, 4, 2, 3, 6, 1, 5])


class Field(problems.Field):
    """Of samples at times of their own."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], dim=1))))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 3, 1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x) + t[:, None, None]))


def field(build: Callable[[], nn.Module] = Field) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


class OwnHeun(Method):
    """Sample n takes ``counts[n]`` steps."""

    name = "own heun"
    tableau = TABLEAUS["heun2"]
    differentiable = False
    per_sample = True

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts

    def solve(self, problem: Problem) -> Tensor:
        states = [problem.y0]
        for start, end in pairwise(problem.times):
            y, s, ds = states[-1], start.expand(len(self.counts)), (end - start) / self.counts
            for i in range(int(self.counts.max())):
                ds = torch.where(i < self.counts, ds, 0.0)
                wide = ds.reshape(-1, *[1] * (y.ndim - 1))
                problem.attempt(s, y, ds)
                k = problem(s, y)
                y_next = y + wide / 2 * (k + problem(s + ds, y + wide * k))
                problem.accept(s, y, ds)
                s, y = s + ds, y_next
            states.append(y)
        return torch.stack(states)


def results(block: ODEBlock, x: Tensor, *t: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = block(x, *t)
    assert isinstance(y, Tensor)
    got = torch.autograd.grad(y.square().sum(), [x, *block.field.parameters()])
    return [y.detach(), *got]


def singly(blocks: list[ODEBlock], x: Tensor, *t: Any) -> list[Tensor]:
    """The same, sample by sample."""
    found = [results(block, x[n : n + 1], *t) for n, block in enumerate(blocks)]
    y, dx, *grads = zip(*found, strict=True)
    return [torch.cat(y, dim=y[0].ndim - x.ndim), torch.cat(dx), *(sum(g) for g in grads)]  # type: ignore[misc]


def factors(block: ODEBlock, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return measured(block, x, lambda y: y.square().flatten(1).sum(1).mean())  # type: ignore[no-any-return]


def mean_factors(blocks: list[ODEBlock], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    found = [factors(block, x[n : n + 1]) for n, block in enumerate(blocks)]
    return {
        name: tuple(torch.stack([f[name][i] for f in found]).mean(0) for i in (0, 1))  # type: ignore[misc]
        for name in found[0]
    }


INPUTS = {Field: X, Convolutions: X[:, :, None] + torch.linspace(0, 1, 4, dtype=X.dtype)}


@pytest.mark.parametrize("build", INPUTS)
@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]])
def test_own_steps_are_those_of_each_sample_alone(
    build: Callable[[], nn.Module], span: tuple[float, float]
) -> None:
    inner, x = field(build), INPUTS[build]  # type: ignore[index]
    how: dict[str, Any] = {"t_span": span, "gradient": "checkpoint"}
    block = ODEBlock(inner, method=OwnHeun(COUNTS), **how)
    alone = [ODEBlock(inner, method=OwnHeun(COUNTS[n : n + 1]), **how) for n in range(len(x))]

    class Scalar(nn.Module):
        """The same field, of one time for all."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.inner(t.expand(len(x)), x)  # type: ignore[no-any-return]

    named = [
        ODEBlock(Scalar(), method="heun2", options={"steps": int(count)}, **how) for count in COUNTS
    ]
    torch.testing.assert_close(results(block, x), singly(named, x), rtol=1e-10, atol=1e-12)
    times = [span[0], 0.5, 0.6, span[1]] if span == SPAN else [span[0], 0.6, 0.5, span[1]]
    torch.testing.assert_close(results(block, x, times), singly(named, x, times))
    got, want = factors(block, x), mean_factors(alone, x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)
    by_name = {k.removeprefix("field.inner."): v for k, v in mean_factors(named, x).items()}
    shared = {k.removeprefix("field."): v for k, v in got.items()}
    torch.testing.assert_close(shared, by_name, rtol=1e-10, atol=1e-14)


def test_the_first_samples_alone_enter_with_their_weights() -> None:
    block = ODEBlock(field(), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    optimizer = SNOpt(block, basis="curvature", curvature_samples=3)
    block(X).square().sum(1).mean().backward()
    optimizer.step()
    a, _ = optimizer.factors()["field.inner"]
    assert float(a[-1, -1]) == pytest.approx(1.0)  # that of the bias: a mean of ones


def test_a_grid_for_all_samples_is_refused() -> None:
    block = ODEBlock(field(), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    with (
        SNOpt(block, basis="curvature", sampling="grid", grid_points=5),
        pytest.raises(ValueError, match="steps of their own: choose sampling='steps'"),
    ):
        block(X).square().sum().backward()


def test_random_fields_are_refused() -> None:
    class Dropped(Field):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(t, x))

    block = ODEBlock(field(Dropped), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    with pytest.raises(ValueError, match=r"Dropped draws random numbers.*method by name"):
        block(X)


def test_a_field_of_one_time_for_all_is_told() -> None:
    block = ODEBlock(problems.field(), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    with pytest.raises(RuntimeError) as e:
        block(X)
    assert "a time for each sample" in "".join(e.value.__notes__)


def test_a_horizon_moves_by_the_slope_at_its_end() -> None:
    block = ODEBlock(field(), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    optimizer = SNOpt(block)
    horizon = Horizon(block, optimizer, every=1)
    y = block(X)
    assert isinstance(y, Tensor)
    y.square().sum().backward()
    with torch.no_grad():
        slope = block.field(torch.full((len(X),), SPAN[1], dtype=X.dtype), y)
    optimizer.step()
    assert horizon.trace[0].q_t == pytest.approx(
        (2 * y * slope).sum().item(), rel=1e-4
    )  # and a cost of time


def test_advice_is_refused() -> None:
    block = ODEBlock(field(), SPAN, method=OwnHeun(COUNTS), gradient="checkpoint")
    for ask in (advise, gradient_error):
        with pytest.raises(ValueError, match=r"a time for each sample.*method='dopri5'"):
            ask(block, X)


# -- torchode -------------------------------------------------------------------------------------

NAMES = {"dopri5": "Dopri5", "tsit5": "Tsit5", "heun": "Heun"}


def test_without_torchode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchode", None)
    with pytest.raises(ImportError, match=r"pip install 'snopt\[torchode\]'"):
        Torchode()


def solved(inner: nn.Module, name: str, tolerance: float, span: Any, t: Any = None) -> list[Tensor]:
    """Autograd through torchode's own solve."""
    torchode: Any = pytest.importorskip("torchode")
    x = X.clone().requires_grad_()
    term = torchode.ODETerm(inner)
    solver = torchode.AutoDiffAdjoint(
        getattr(torchode, NAMES[name])(term),
        torchode.IntegralController(tolerance, tolerance, term=term),
        backprop_through_step_size_control=False,
    )
    times = torch.tensor(span, dtype=X.dtype).expand(len(x), -1)
    y = solver.solve(torchode.InitialValueProblem(x, t_eval=times)).ys[:, -1]
    grads = torch.autograd.grad(y.square().sum(), [x, *inner.parameters()])
    return [y.detach(), *grads]


@pytest.mark.parametrize("span", [SPAN, SPAN[::-1]])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_through_torchodes_solve(name: str, span: Any) -> None:
    inner = field()
    want = solved(inner, name, 1e-4, span)
    how: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "method": Torchode(name)}
    block = ODEBlock(inner, span, gradient="checkpoint", **how)
    torch.testing.assert_close(results(block, X), want, rtol=1e-10, atol=1e-12)


@cache
def of_the_flow() -> list[Tensor]:
    return solved(field(), "dopri5", 1e-11, SPAN)


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
@pytest.mark.parametrize("name", NAMES)
def test_adjoints_are_those_of_the_flow(name: str, kind: str) -> None:
    want, tolerance, near = of_the_flow(), *((1e-5, 1e-4) if name == "heun" else (1e-10, 1e-8))
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "method": Torchode(name)}
    got = results(ODEBlock(field(), SPAN, gradient=kind, **how), X)
    torch.testing.assert_close(got, want, rtol=near, atol=near)


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_those_of_each_sample_alone(name: str) -> None:
    pytest.importorskip("torchode")
    how: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "method": Torchode(name)}
    block = ODEBlock(field(), SPAN, gradient="checkpoint", **how)
    got, want = factors(block, X), mean_factors([block] * len(X), X)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["checkpoint", "adjoint", "adjoint-seminorm"])
def test_factors_are_those_of_a_dense_grid(kind: str) -> None:
    pytest.importorskip("torchode")
    inner = field()

    def of_all(t: Tensor, x: Tensor) -> Tensor:
        return inner(t.expand(len(x)), x)  # type: ignore[no-any-return]

    of_all.named_modules = inner.named_modules  # type: ignore[attr-defined]
    loss = problems.squares(Y)
    want = reference.factors(of_all, X, SPAN, loss, 200)  # type: ignore[arg-type]
    block = ODEBlock(inner, SPAN, gradient=kind, rtol=1e-10, atol=1e-10, method=Torchode())
    assert distance(measured(block, X, loss), want, "field.") < 2e-3


@pytest.mark.parametrize("rule", ["adam", "paper", "kfac", "gauss_newton"])
def test_training_with_torchode(rule: str) -> None:
    pytest.importorskip("torchode")
    block = ODEBlock(field(), SPAN, gradient="checkpoint", method=Torchode("tsit5"))
    optimizer, losses = SNOpt(block, lr=0.02, rule=rule), []
    for _ in range(6):
        optimizer.zero_grad()
        outputs = block(X)
        assert isinstance(outputs, Tensor)
        loss = (outputs - Y).square().sum(1).mean()
        if rule == "gauss_newton":
            optimizer.curvature_pass(outputs, "gaussian", targets=Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert optimizer.coverage().fraction == 1.0


def test_a_warm_start_saves_the_search_for_a_first_step() -> None:
    pytest.importorskip("torchode")
    how: dict[str, Any] = {"gradient": "adjoint", "options": {"warm_start": True}}
    block = ODEBlock(field(), SPAN, method=Torchode(), **how)
    first = results(block, X), block.nfe_forward
    again = results(block, X), block.nfe_forward - first[1]
    torch.testing.assert_close(again[0], first[0], rtol=1e-2, atol=1e-2)
    assert again[1] < first[1]


def test_what_torchode_cannot_do_is_refused() -> None:
    pytest.importorskip("torchode")
    with pytest.raises(ValueError, match=r"'dopri5' does not work .*choose gradient='adjoint'"):
        ODEBlock(field(), method=Torchode(), gradient="direct")
    with pytest.raises(ValueError, match=r"step_size: not known to 'dopri5'"):
        ODEBlock(field(), method=Torchode(), options={"step_size": 0.1})
    with pytest.raises(ValueError, match=r"name='dopri8'; choose one of dopri5, tsit5, heun"):
        Torchode("dopri8")


class Blowing(nn.Module):
    def __init__(self, slope: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.slope(t, x)


@pytest.mark.parametrize(
    ("slope", "options", "words"),
    [
        (lambda t, x: x * torch.nan, {}, "non-finite state.*7 of 7 samples"),
        (lambda t, x: x.square() * 50, {}, "step underflow|non-finite state"),
        (lambda t, x: x, {"max_steps": 1}, "too many steps.*limit 1"),
    ],
)
def test_failures(slope: Any, options: dict[str, Any], words: str) -> None:
    pytest.importorskip("torchode")
    block = ODEBlock(Blowing(slope), SPAN, method=Torchode(), rtol=1e-8, options=options)
    with pytest.raises(SolverError, match=words):
        block(X)
