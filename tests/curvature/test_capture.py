"""Curvature gathered along the backward solve: counting, and leaving no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt, load_solver_state, solver_state
from tests.support import problems, reference
from tests.support.problems import GRADIENTS
from tests.support.training import Pairs, distance, measured

# -- counting -------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Two blocks that share a field."""

    def __init__(self, field: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.first = ODEBlock(field, (0.0, 0.5), **settings)
        self.second = ODEBlock(field, (0.5, 1.0), **settings)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


class Series(nn.Module):
    """One block solved once per observation interval, as in an ODE-RNN."""

    def __init__(self, field: nn.Module, count: int, **settings: Any) -> None:
        super().__init__()
        self.times = torch.linspace(0, 1, count + 1).tolist()
        self.block = ODEBlock(field, (0.0, 1.0), **settings)

    def forward(self, x: Tensor) -> Tensor:
        for pair in zip(self.times[:-1], self.times[1:], strict=True):
            x = self.block(x, pair)[-1]
        return x


@cache
def of_the_whole() -> Pairs:
    field, (x, y) = problems.field(), problems.data()
    return reference.factors(field, x, (0.0, 1.0), problems.squares(y), 200)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("build", [Halves, lambda f, **s: Series(f, 5, **s)])
def test_several_solves_are_one_integral(kind: str, build: Callable[..., nn.Module]) -> None:
    field, (x, y) = problems.field(), problems.data()
    model = build(field, gradient=kind, method="rk4", options={"steps": 20})
    names = {"inner", "outer"}
    found = measured(model, x, problems.squares(y))
    prefix = next(name.removesuffix("inner") for name in found if name.endswith("inner"))
    assert set(found) == {prefix + name for name in names}
    assert distance(found, of_the_whole(), prefix) < 2e-3


def test_two_blocks_of_their_own() -> None:
    one, two = problems.field(0), problems.field(1)
    x, y = problems.data()
    loss = problems.squares(y)
    model = nn.Sequential(
        problems.tight(one, options={"max_step": 0.02}),
        problems.tight(two, (0.0, 2.0), options={"max_step": 0.02}),
    )
    found = measured(model, x, loss)
    middle = problems.flow(one, x, (0.0, 1.0)).detach()
    late = reference.factors(two, middle, (0.0, 2.0), loss, 200)
    early = reference.factors(
        one, x, (0.0, 1.0), lambda z: loss(problems.flow(two, z, (0.0, 2.0))), 400
    )
    assert distance(found, early, "0.field.") < 1e-3
    assert distance(found, late, "1.field.") < 1e-3


class Shared(nn.Module):
    """A field that uses one layer twice and another one at three places of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(3, 3)
        self.places = nn.Linear(1, 2, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return h + self.places(x.unsqueeze(2)).sum(2).sin()


def test_weights_used_several_times_are_summed_over_uses() -> None:
    """A sums over uses, B averages: tr A tr B is the uses' product of sums, as in KFC."""
    torch.manual_seed(0)
    field, (x, y) = Shared().double(), problems.data()
    loss = problems.squares(y)
    found = measured(problems.tight(field, options={"max_step": 0.01}), x, loss)

    class Unshared(nn.Module):
        """The same numbers with a layer of its own for every use."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = copy.deepcopy(field.twice), copy.deepcopy(field.twice)
            for i in range(3):
                setattr(self, f"place{i}", copy.deepcopy(field.places))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            h = torch.tanh(self.two(torch.tanh(self.one(x))))
            places = [getattr(self, f"place{i}")(x[:, i : i + 1]).sum(1) for i in range(3)]
            return h + torch.stack(places, 1).sin()

    parts = reference.factors(Unshared(), x, (0.0, 1.0), loss, 200)
    for name, uses in (("twice", ["one", "two"]), ("places", ["place0", "place1", "place2"])):
        a = sum(parts[use][0] for use in uses)
        b = sum(parts[use][1] for use in uses) / len(uses)
        torch.testing.assert_close(found[f"field.{name}"][0], a, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[f"field.{name}"][1], b, rtol=1e-3, atol=1e-5)


class InPlace(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.outer(self.relu(self.inner(x)))


@pytest.mark.parametrize("locations", [(), (4,)], ids=["plain", "locations"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_in_place_activations(kind: str, locations: tuple[int, ...]) -> None:
    """Inside the field and outside: factors and gradients are those of the plain activation.

    With locations the outputs of linear layers are views.
    """
    x, y = torch.randn(7, *locations, 5).double(), torch.randn(7, *locations, 2).double()
    found, grads = [], []
    for inplace in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(5, 3),
            nn.ReLU(inplace=inplace),
            ODEBlock(InPlace(inplace), gradient=kind),
            nn.Linear(3, 4),
            nn.ReLU(inplace=inplace),
            nn.Linear(4, 2),
        ).double()
        found.append(measured(model, x, problems.squares(y)))
        grads.append(problems.gradients(model))
    assert torch.equal(*grads)
    assert found[0].keys() == found[1].keys()
    for name, pair in found[0].items():
        for got, want in zip(pair, found[1][name], strict=True):
            torch.testing.assert_close(got, want)
        assert pair[1].abs().sum() > 0


class Hyper(nn.Module):
    """Inputs that no state leads to: a constant, time alone, and a learned vector."""

    def __init__(self) -> None:
        super().__init__()
        self.constant, self.time, self.learned = nn.Linear(2, 3), nn.Linear(1, 3), nn.Linear(2, 3)
        self.vector = nn.Parameter(torch.tensor([[0.3, -0.7]]))
        self.register_buffer("fixed", torch.tensor([[1.0, -2.0]]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        n = len(x)
        fixed = self.constant(self.fixed.expand(n, -1))
        time = self.time(t.expand(n, 1))
        return fixed + torch.sin(time) + self.learned(self.vector.expand(n, -1)) * x


def test_layers_off_the_path_of_the_state() -> None:
    torch.manual_seed(0)
    field, (x, y) = Hyper().double(), problems.data()
    loss = problems.squares(y)
    expected = reference.factors(field, x, (0.0, 1.0), loss, 200)
    found = measured(problems.tight(field, options={"max_step": 0.01}), x, loss)
    assert distance(found, expected) < 1e-3


# -- leaving no trace -----------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("sampling", ["steps", "grid"])
@pytest.mark.parametrize("solver", problems.COARSE)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_refresh_gradient_is_the_ordinary_one_bit_for_bit(
    kind: str, solver: str, sampling: str, warm: bool
) -> None:
    settings = copy.deepcopy(problems.COARSE[solver])
    if warm:
        settings["options"] = {**settings.get("options", {}), "warm_start": True}
    model = problems.model(ODEBlock(problems.field(), gradient=kind, **settings))
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    grads, evaluations = [], []
    if warm:
        problems.squares(y)(model(x)).backward()
    remembered = solver_state(model)
    for watched in (False, True, False):
        load_solver_state(model, remembered)
        if watched:
            optimizer = SNOpt(model, rule="paper", sampling=sampling)
        model.zero_grad()
        before = model[1].nfe_forward, model[1].nfe_backward
        x.requires_grad_().grad = None
        problems.squares(y)(model(x)).backward()
        grads.append((problems.gradients(model), x.grad))
        evaluations.append((model[1].nfe_forward - before[0], model[1].nfe_backward - before[1]))
        if watched:
            assert model[1].nfe_curvature > 0  # it did look
            optimizer.method.capture.disarm()
    for pair in grads[1:]:
        assert torch.equal(pair[0], grads[0][0])
        assert torch.equal(pair[1], grads[0][1])
    assert len(set(evaluations)) == 1


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    ) + sum(len(m.observers) for m in model.modules() if isinstance(m, ODEBlock))


def test_ordinary_steps_have_no_hooks() -> None:
    model = problems.model(ODEBlock(problems.field()))
    optimizer = SNOpt(model, rule="paper", refresh_every=3)
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    for step in range(7):
        optimizer.zero_grad()
        assert (hooks(model) > 0) == (step % 3 == 0)
        before = model[1].nfe_curvature
        problems.squares(y)(model(x)).backward()
        assert (model[1].nfe_curvature > before) == (step % 3 == 0)
        optimizer.step()
    assert optimizer.diagnostics()["refreshes"] == 3 * len(optimizer.factors())


def test_basis_gradient_never_has_hooks() -> None:
    model = problems.model(ODEBlock(problems.field()))
    optimizer = SNOpt(model, rule="paper", basis="gradient", refresh_every=2)
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    for _ in range(4):
        assert hooks(model) == 0
        optimizer.zero_grad()
        problems.squares(y)(model(x)).backward()
        optimizer.step()
    assert model[1].nfe_curvature == 0


def test_a_layer_that_is_heard_no_more_is_told(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(5, 2).double()
    optimizer = SNOpt(layer, rule="paper", refresh_every=1)
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    for step in range(4):
        optimizer.zero_grad()
        outputs = layer(x) if step < 2 else nn.functional.linear(x, layer.weight, layer.bias)
        problems.squares(y)(outputs).backward()
        optimizer.step()
    assert caplog.text.count("so the last one stays: no backward pass went through the layer") == 1


@pytest.mark.parametrize("kind", GRADIENTS)
def test_evaluation_captures_nothing(kind: str) -> None:
    model = problems.model(ODEBlock(problems.field(), gradient=kind))
    optimizer = SNOpt(model, rule="paper")
    capture = optimizer.method.capture
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    with torch.no_grad():
        model(x)
    model.eval()
    torch.autograd.grad(model(x.requires_grad_()).sum(), x)  # as for a saliency map
    model.train()
    assert capture.batch == 0
    assert all(s.samples == 0 and not s.a.any() and not s.b.any() for s in capture.sums.values())
    # Evaluation between a step's forward and backward pass changes nothing either.
    expected = measured(copy.deepcopy(model), x.detach(), problems.squares(y))
    optimizer.zero_grad()
    loss = problems.squares(y)(model(x.detach()))
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()
    loss.backward()
    optimizer.step()
    for name, pair in optimizer.factors().items():
        for got, want in zip(pair, expected[name], strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("build", [lambda: ODEBlock(problems.field()), lambda: nn.Identity()])
def test_a_clean_slate_between_forward_and_backward(build: Callable[[], nn.Module]) -> None:
    """``zero_grad()`` after the forward pass, as many loops have it."""
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    ends = []
    for late in (False, True):
        model = problems.model(build())
        optimizer = SNOpt(model, rule="paper", refresh_every=2)
        for _ in range(4):
            if not late:
                optimizer.zero_grad()
            loss = problems.squares(y)(model(x))
            if late:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert optimizer.method.samples == 7
    assert torch.equal(*ends)


def test_a_skipped_step_leaves_nothing_behind() -> None:
    """A backward pass without a step (an overflow, a failed solve), then a clean one."""
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    model = problems.model(ODEBlock(problems.field()))
    expected = measured(copy.deepcopy(model), x, problems.squares(y))
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    problems.squares(y)(model(50 * x)).backward()
    optimizer.zero_grad()
    problems.squares(y)(model(x)).backward()
    optimizer.step()
    for name, pair in optimizer.factors().items():
        for got, want in zip(pair, expected[name], strict=True):
            assert torch.equal(got, want)


def test_unused_layers_do_not_keep_hooks_alive() -> None:
    """A layer that takes no part, a head for another task say, is asked once a period."""
    model = problems.model(ODEBlock(problems.field()))
    model[1].field.spare = nn.Linear(3, 3).double()
    optimizer = SNOpt(model, rule="paper", refresh_every=3)
    x, y = torch.randn(7, 5).double(), torch.randn(7, 2).double()
    for step in range(6):
        optimizer.zero_grad()
        assert (hooks(model) > 0) == (step % 3 == 0)
        problems.squares(y)(model(x)).backward()
        optimizer.step()
    assert "1.field.spare" not in optimizer.factors()


# -- sub-batches and memory -----------------------------------------------------------------------


def test_curvature_samples_are_the_first_ones() -> None:
    x, y = torch.randn(9, 5).double(), torch.randn(9, 2).double()
    model = problems.model(problems.tight(problems.field(), method="rk4", options={"steps": 8}))
    found = measured(copy.deepcopy(model), x, problems.squares(y), curvature_samples=4)
    expected = measured(copy.deepcopy(model), x[:4], problems.squares(y[:4]))
    for name, pair in expected.items():
        for got, want in zip(found[name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    everything = measured(copy.deepcopy(model), x, problems.squares(y))
    plenty = measured(copy.deepcopy(model), x, problems.squares(y), curvature_samples=100)
    for name, pair in everything.items():
        assert torch.equal(plenty[name][0], pair[0])
        assert torch.equal(plenty[name][1], pair[1])
