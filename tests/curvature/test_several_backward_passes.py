"""Several backward passes before a step are one: through one graph, or through several batches'."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.curvature.kronecker import gradient_factors, gradient_moments
from snopt.ode.joining import Place
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import Pairs, flat

X, Y = problems.batch(8)
KINDS = ("adjoint", "checkpoint", "direct")
RULES = ("paper", "adam", "kfac")
STEPS: dict[str, Any] = {"method": "rk4", "options": {"steps": 4}}
ADAPTIVE: dict[str, Any] = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}


def build(kind: str = "adjoint", **solver: Any) -> nn.Sequential:
    return problems.model(ODEBlock(problems.field(), gradient=kind, **(solver or STEPS)))


def losses(out: Tensor) -> list[Tensor]:
    """Three that are neither alike nor of one size; two of them partly cancel."""
    return [
        (out - Y).square().sum(1).mean(),
        0.3 * out.sin().sum(1).mean(),
        -0.9 * (out[:, :1] - Y[:, :1]).square().sum(1).mean(),
    ]


def one_by_one(terms: list[Tensor]) -> None:
    for i, term in enumerate(terms):
        term.backward(retain_graph=i + 1 < len(terms))


def added_up(terms: list[Tensor]) -> None:
    torch.stack(terms).sum().backward()


def together(terms: list[Tensor]) -> None:
    torch.autograd.backward(terms)


def returned(terms: list[Tensor], parameters: list[nn.Parameter]) -> None:
    """Gradients are asked for and set by hand."""
    for term in terms:
        grads = torch.autograd.grad(term, parameters, retain_graph=True)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g if p.grad is None else p.grad + g


Way = Callable[[list[Tensor]], None]


def stepped(model: nn.Module, run: Callable[[nn.Module], None], **settings: Any) -> SNOpt:
    optimizer = SNOpt(model, **{"lr": 0.0, "rule": "paper", **settings})
    optimizer.zero_grad()
    run(model)
    optimizer.step()
    return optimizer


def alike(found: Pairs, expected: Pairs, rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    assert expected
    for name, pair in expected.items():
        for got, want in zip(found[name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=rtol, atol=1e-12)


def same(model: nn.Module, run: Callable[[nn.Module, Way], None], **settings: Any) -> None:
    """Losses one by one, or in one call, give the factors and samples of their sum."""
    expected = stepped(copy.deepcopy(model), lambda m: run(m, added_up), **settings)
    for way in (one_by_one, together):
        found = stepped(copy.deepcopy(model), lambda m, way=way: run(m, way), **settings)
        alike(found.factors(), expected.factors())
        assert found.method.samples == expected.method.samples  # type: ignore[attr-defined]


# -- losses through one graph ----------------------------------------------------------------------


@pytest.mark.parametrize("solver", [STEPS, ADAPTIVE])
@pytest.mark.parametrize(
    "settings", [{}, {"sampling": "grid", "grid_points": 7}, {"curvature_samples": 3}]
)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_losses_one_by_one_are_their_sum(
    kind: str, settings: dict[str, Any], solver: dict[str, Any]
) -> None:
    same(build(kind, **solver), lambda m, way: way(losses(m(X))), **settings)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_factors_by_hand(kind: str) -> None:
    """Of the layer above the block, from the cotangents of single samples."""
    model = build(kind)
    found = stepped(model, lambda m: one_by_one(losses(m(X)))).factors()["2"]
    z = model[1](model[0](X)).detach()
    heard = model[2](z)
    (c,) = torch.autograd.grad(sum(losses(model[4](heard.relu()))), heard)
    ones = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    alike({"2": found}, {"2": (ones.T @ ones / len(X), len(X) * c.T @ c)})


@pytest.mark.parametrize(
    ("rule", "basis", "kind"),
    [  # every two of them meet
        (rule, basis, KINDS[(i + j) % 3])
        for i, rule in enumerate(RULES)
        for j, basis in enumerate(("curvature", "both", "gradient"))
    ],
)
def test_training_is_that_on_the_sum(rule: str, basis: str, kind: str) -> None:
    models = [build(kind) for _ in range(2)]
    for model, way in zip(models, (one_by_one, added_up), strict=True):
        optimizer = SNOpt(model, 0.02, rule=rule, basis=basis, refresh_every=2)
        for _ in range(5):
            optimizer.zero_grad()
            way(losses(model(X)))
            optimizer.step()
    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_gradient_does_not_know_who_watches(kind: str) -> None:
    model = build(kind, **ADAPTIVE)
    alone = copy.deepcopy(model)
    one_by_one(losses(alone(X)))
    optimizer = stepped(model, lambda m: one_by_one(losses(m(X))))
    assert torch.equal(problems.gradients(model), problems.gradients(alone))
    assert model[1].nfe_backward == alone[1].nfe_backward
    assert optimizer.factors()


@pytest.mark.parametrize("kind", GRADIENTS)
def test_several_times_and_solves(kind: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(5, 3), build(kind)[1]
            self.head = nn.Linear(3, 2)
            self.double()

        def forward(self, x: Tensor) -> list[Tensor]:
            h = self.block(self.stem(x))
            path = self.block(h, [0.0, 0.4, 1.0])
            # Each use of the head is reached by one loss, the second solve by two.
            return [self.head(h), self.head(path[1]), self.head(path[2])]

    torch.manual_seed(0)
    same(Model(), lambda m, way: way([(out - Y).square().mean() for out in m(X)]))


def test_a_cell_whose_past_is_kept() -> None:
    """A loss at every time, each through all the past."""

    def run(model: nn.Module, way: Way) -> None:
        h, terms = X[:, :3], []
        for i in range(4):
            h = torch.tanh(model(h))
            terms.append((i + 1) * h.square().mean())
        way(terms)

    torch.manual_seed(0)
    same(nn.Linear(3, 3).double(), run)


def test_convolutions_and_locations() -> None:
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    same(model, lambda m, way: way(losses(m(X.unsqueeze(1)))))


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_that_are_returned(kind: str) -> None:
    model = build(kind)
    expected = stepped(copy.deepcopy(model), lambda m: added_up(losses(m(X))))
    found = stepped(model, lambda m: returned(losses(m(X)), list(m.parameters())))
    alike(found.factors(), expected.factors())


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_that_are_only_looked_at(kind: str) -> None:
    """Between two losses, as for the balance of their weights."""
    model = build(kind)
    expected = stepped(copy.deepcopy(model), lambda m: added_up(losses(m(X))[:2]))

    def run(m: nn.Module) -> None:
        first, second, other = losses(m(X))
        for wanted in (list(m.parameters()), [next(m.parameters())]):
            torch.autograd.grad(9 * other, wanted, retain_graph=True)
        first.backward(retain_graph=True)
        for wanted in (list(m.parameters()), [next(m.parameters())]):
            torch.autograd.grad(9 * other, wanted, retain_graph=True)
        second.backward()

    found = stepped(model, run)
    alike(found.factors(), expected.factors())
    assert found.method.samples == len(X)  # type: ignore[attr-defined]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_what_was_thrown_away_is_no_part_of_the_sum(kind: str, zeros: bool) -> None:
    model = build(kind)
    expected = stepped(copy.deepcopy(model), lambda m: added_up(losses(m(X))[1:]))

    def run(m: nn.Module) -> None:
        first, *rest = losses(m(X))
        (30 * first).backward(retain_graph=True)
        m.zero_grad(set_to_none=not zeros)
        one_by_one(rest)

    found = stepped(model, run)
    alike(found.factors(), expected.factors())
    assert found.method.samples == len(X)  # type: ignore[attr-defined]


@pytest.mark.parametrize("cleared", [False, True])
def test_a_graph_that_outlives_a_step(cleared: bool) -> None:
    """A pass after the step belongs to the next one; a first layer needs no weight for it."""
    model = nn.Linear(5, 2).double()
    expected = stepped(copy.deepcopy(model), lambda m: losses(m(X))[1].backward())
    optimizer = SNOpt(model, rule="paper", lr=0.0, refresh_every=1)
    terms = losses(model(X))
    terms[0].backward(retain_graph=True)
    optimizer.step()
    if cleared:
        optimizer.zero_grad()
    else:
        model.zero_grad()
    terms[1].backward()
    optimizer.step()
    alike(optimizer.factors(), expected.factors())
    assert optimizer.method.samples == len(X)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("kept", [False, True])
def test_cotangents_are_kept_with_their_graph_alone(kept: bool, kind: str) -> None:
    def alive() -> list[Place]:
        return [x for x in gc.get_objects() if type(x) is Place and id(x) not in others]

    gc.collect()
    others: set[int] = set()
    of_other_tests = alive()
    others.update(map(id, of_other_tests))
    model = build(kind)
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    terms = losses(model(X))
    terms[0].backward(retain_graph=kept)
    places = alive()
    assert any(isinstance(x, Tensor) for p in places for x in vars(p).values()) == kept
    optimizer.step()
    del terms, places
    gc.collect()
    assert not alive()


@pytest.mark.parametrize("kind", GRADIENTS)
def test_two_optimizers_see_the_sum(kind: str) -> None:
    model = build(kind)
    expected = stepped(copy.deepcopy(model), lambda m: added_up(losses(m(X))))
    both = [SNOpt(model, rule="paper", lr=0.0), SNOpt(model, rule="paper", lr=0.0)]
    one_by_one(losses(model(X)))
    for optimizer in both:
        optimizer.step()
        alike(optimizer.factors(), expected.factors())


# -- several forward passes, then their backward passes --------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "rule", "kind"),
    [
        *(((1, 2, 5), "paper", kind) for kind in GRADIENTS),
        *(((5, 3), rule, "direct") for rule in ("paper", "adam")),
        ((5, 3), "adam", "adjoint"),
    ],
)
@pytest.mark.parametrize("order", ["first", "last", "kept"])
def test_batches_whose_backward_passes_wait(
    sizes: tuple[int, ...], rule: str, kind: str, order: str
) -> None:
    whole, parts = build(kind), build(kind)
    one, many = (
        SNOpt(m, 0.02, rule=rule, basis="curvature", refresh_every=3) for m in (whole, parts)
    )
    for step in range(5):
        one.zero_grad()
        problems.squares(Y)(whole(X)).backward()
        one.step()
        many.zero_grad()
        pairs = zip(X.split(sizes), Y.split(sizes), strict=True)
        waiting = [problems.squares(y)(parts(x)) * len(x) / len(X) for x, y in pairs]
        for loss in reversed(waiting) if order == "last" else waiting:
            loss.backward(retain_graph=order == "kept")
        many.step()
        if step % 3 == 0:
            alike(many.factors(), one.factors())
        assert many.method.samples == pytest.approx(8)  # type: ignore[attr-defined]
        torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_two_batches_with_two_losses_each(kind: str) -> None:
    whole, parts = build(kind), build(kind)
    expected = stepped(whole, lambda m: added_up(losses(m(X))))

    def run(m: nn.Module) -> None:
        outs = [m(x) for x in X.split(4)]
        halves = [(out, y) for out, y in zip(outs, Y.split(4), strict=True)]
        first = [0.5 * (out - y).square().sum(1).mean() for out, y in halves]
        second = [0.15 * out.sin().sum(1).mean() for out in outs]
        third = [-0.45 * (out - y)[:, 0].square().mean() for out, y in halves]
        for terms in (first, second):
            for term in terms:
                term.backward(retain_graph=True)
        for term in third:
            term.backward()

    found = stepped(parts, run)
    alike(found.factors(), expected.factors())
    assert found.method.samples == len(X)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_curvature_passes_that_wait(kind: str) -> None:
    whole, parts = build(kind), build(kind)

    def run(m: nn.Module, optimizer: SNOpt, sizes: list[int]) -> None:
        outs = [m(x) for x in X.split(sizes)]
        for out in outs:
            optimizer.curvature_pass(out, "gaussian")
        for out, y in zip(outs, Y.split(sizes), strict=True):
            ((out - y).square().sum() / 16).backward()
        optimizer.step()

    found = []
    for model, sizes in ((whole, [8]), (parts, [5, 3])):
        optimizer = SNOpt(model, 0.0, rule="kfac", curvature="ggn")
        optimizer.zero_grad()
        run(model, optimizer, sizes)
        found.append(optimizer)
    alike(found[1].factors(), found[0].factors())
    assert found[1].method.samples == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("rule", "kind"), [*product(("paper", "kfac"), ("adjoint", "direct"))])
def test_samples_without_curvature(rule: str, kind: str, waits: bool) -> None:
    """Averages of gradients take N from the blocks, which add up micro-batches."""
    whole, parts = build(kind), build(kind)
    settings: dict[str, Any] = {"rule": rule, "basis": "gradient", "refresh_every": 3}
    one, many = (SNOpt(m, 0.02, **{"rule": "paper", **settings}) for m in (whole, parts))
    for step in range(5):
        one.zero_grad()
        problems.squares(Y)(whole(X)).backward()
        one.step()
        waiting = []
        for x, y in zip(X.split((5, 3)), Y.split((5, 3)), strict=True):
            waiting.append(problems.squares(y)(parts(x)) * len(x) / len(X))
            if step < 2 and not waiting[1:]:  # a pass that is thrown away, and one that looks
                torch.autograd.grad(waiting[0], list(parts.parameters()), retain_graph=True)
                waiting[0].backward(retain_graph=True)
                many.zero_grad() if step else parts.zero_grad()
            if not waits:
                waiting[-1].backward()
        for loss in waiting if waits else []:
            loss.backward()
        many.step()
        alike(many.factors(), one.factors(), 1e-7)
        assert many.method.samples == pytest.approx(8)  # type: ignore[attr-defined]
        torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-8, atol=1e-10)
        many.zero_grad()


def test_the_first_averages_know_the_samples() -> None:
    model = build()
    found = stepped(model, lambda m: added_up(losses(m(X))), rule="kfac", basis="gradient")
    g = model[4].weight.grad, model[4].bias.grad
    assert g[0] is not None
    assert g[1] is not None
    matrix = torch.cat([g[0], g[1][:, None]], dim=1)[None]
    moments = gradient_moments(matrix, ((len(matrix[0]),),), ((5,),))
    ((a,),), ((b,),) = gradient_factors(*moments, len(X))
    alike({"4": found.factors()["4"]}, {"4": (a[0], b[0])})
