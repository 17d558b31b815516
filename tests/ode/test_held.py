"""Tensors that a field holds for one solve: gradients reach them, and the solve keeps its own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.problems import GRADIENTS


class Told(nn.Module):
    """A field that reads an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = problems.field()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.inner(t, x) + torch.tanh(self.context * x)
        return out


def found(kind: str) -> list[Tensor]:
    field, (x, _) = Told(), problems.data()
    block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
    torch.manual_seed(2)
    encoder = nn.Linear(3, 3).double()
    loss = torch.zeros(()).double()
    for part in (x[:3], x[3:]):
        field.context = encoder(part)
        loss = loss + block(part).square().sum()
    loss.backward()
    return [p.grad for m in (encoder, field) for p in m.parameters()]


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_each_solve_has_its_own_context(kind: str) -> None:
    torch.testing.assert_close(found(kind), found("direct"), rtol=1e-6, atol=1e-8)


class Derived(Told):
    """A field whose context is made from its own parameters, or from another context."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = super().forward(t, x) * self.gates["first"]
        return out


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_contexts_made_from_one_another_are_counted_once(kind: str) -> None:
    x, _ = problems.data()
    field = Derived()

    def run(kind: str) -> list[Tensor]:
        field.zero_grad()
        field.context = field.encoder(x)
        field.gates = {"first": torch.tanh(field.context)}
        ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)(x).square().sum().backward()
        return [p.grad for p in field.parameters()]

    torch.testing.assert_close(run(kind), run("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_parameters_from_outside(kind: str) -> None:
    field, (x, _) = problems.field(), problems.data()

    def run(kind: str) -> list[Tensor]:
        block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
        theta = {k: (1.5 * p).detach().requires_grad_() for k, p in block.named_parameters()}
        functional_call(block, theta, (x,)).square().sum().backward()
        return [p.grad for p in theta.values()]

    torch.testing.assert_close(run(kind), run("direct"), rtol=1e-6, atol=1e-8)


SOLVERS = {
    "rk4": {"method": "rk4", "options": {"step_size": 0.25}},
    "steps": {"method": "dopri5", "options": {"steps": 3}},
    "dopri5": {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4},
    "bosh3": {"method": "bosh3", "rtol": 1e-3, "atol": 1e-3},
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("dropout", "own"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("t", [None, [0.0, 0.4, 1.0]])
def test_checkpoint_repeats_the_numbers_that_were_drawn(
    name: str, dropout: bool, own: bool, t: list[float] | None
) -> None:
    """The gradient and the random stream afterwards are those of direct backpropagation."""
    settings = dict(SOLVERS[name])
    if dropout and "rtol" in settings:
        # Masks that differ from stage to stage are no ODE: nothing to control.
        settings.update(rtol=10.0, atol=10.0)
    found = []
    for kind in ("direct", "checkpoint", "checkpoint"):
        field, (x, _) = problems.Noisy(dropout, own), problems.data()
        torch.manual_seed(3)
        x.requires_grad_()
        block = ODEBlock(field, gradient=kind, **settings)
        if t is not None and kind == "direct":  # checkpoint begins each interval anew
            out = x
            for span in ((0.0, 0.4), (0.4, 1.0)):
                out = ODEBlock(field, span, gradient=kind, **settings)(out)
        else:
            out = block(x) if t is None else block(x, torch.tensor(t).double())[-1]
        out.square().sum().backward()
        after = torch.rand(1, generator=field.generator)
        found.append([x.grad, *(p.grad for p in field.parameters()), after])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-8)


def test_another_field_draws_numbers_of_its_own() -> None:
    x, _ = problems.data()
    noisy = problems.Noisy(True, False)
    found = []
    for field in (noisy, problems.field()):
        block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient="checkpoint")
        block(x)
        block.field = noisy
        noisy.zero_grad()
        torch.manual_seed(3)
        block(x).square().sum().backward()
        found.append([p.grad for p in noisy.parameters()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("kind", GRADIENTS[:2])
@pytest.mark.parametrize(("dropout", "own"), [(True, False), (False, False), (False, True)])
def test_random_fields_of_adjoints_are_told(kind: str, dropout: bool, own: bool) -> None:
    field, (x, _) = problems.Noisy(dropout, own), problems.data()
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
    with pytest.warns(UserWarning, match="gradient='checkpoint' or 'direct'"):
        block(x)
    if dropout:
        block.eval()
        block(x)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_way_back_and_refreshes_leave_no_trace(kind: str) -> None:
    """Statistics of BatchNorm and random numbers are those of the forward pass alone."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm1d(3).double(), problems.field()
            self.calls = 0

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.inner(t, self.norm(x))
            return out

    field, (x, _) = Normed(), problems.data()
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
    optimizer = SNOpt(block, 0.0, rule="adam", basis="curvature", refresh_every=1)
    out = block(x)
    statistics = {k: v.clone() for k, v in field.norm.state_dict().items()}
    assert int(statistics["num_batches_tracked"]) == field.calls == 8
    torch.manual_seed(0)
    out.square().sum().backward()
    optimizer.step()
    assert optimizer.factors()
    torch.testing.assert_close(dict(field.norm.state_dict()), statistics)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


class Path:
    """A context that is no tensor, as a CDE's path."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def at(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(t)


class Driven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.path, self.parts = problems.field(), Path(0.0), ()
        self.gain, self.calls = 1.0, 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(t, x) * self.gain + self.path.at(t) * x
        for part in self.parts:
            out = out + part * x
        return out


@pytest.mark.parametrize("kind", GRADIENTS)
def test_contexts_that_are_no_tensors(kind: str) -> None:
    """Paths, numbers and tuples of tensors; refreshes see the context of their solve, too."""
    found, factors = [], []
    for together in (True, False):
        field, (x, _) = Driven(), problems.data()
        block = ODEBlock(field, method="rk4", options={"steps": 4}, gradient=kind)
        optimizer = SNOpt(block, 0.0, rule="paper")
        weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        losses = []
        for i, part in enumerate((x[:3], x[3:])):
            field.path, field.gain = Path(float(i + 1)), 1.0 + i
            field.parts = (weights[i] * 2,)
            losses.append(block(part).square().sum() / 7)
            if not together:
                losses.pop().backward()
        if together:
            sum(losses).backward()
            assert (field.path.scale, field.gain) == (2.0, 2.0)
        assert field.calls > 8
        found.append([weights.grad, *(p.grad for p in field.parameters())])
        optimizer.step()
        factors.append([x for pair in optimizer.factors().values() for x in pair])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_a_context_that_is_changed_in_place_is_told(kind: str) -> None:
    field, (x, _) = Told(), problems.data()
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
    field.context = torch.ones(3).double()
    out = block(x)
    field.context.mul_(2)
    with pytest.raises(RuntimeError, match="'context' of field Told was changed in place"):
        out.sum().backward()


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_tensors_that_the_field_does_not_hold_are_refused(kind: str) -> None:
    outside = nn.Linear(3, 3).double()

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problems.field()

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            x = x + x.detach().requires_grad_().square()  # a leaf of its own is none from outside
            return self.inner(t, x) if self.own else self.inner(t, outside(x))

    for own in (True, False):
        field, (x, _) = Closed(), problems.data()
        field.own = own
        loss = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)(x).sum()
        if own:
            loss.backward()
        else:
            with pytest.raises(ValueError, match="are no attributes of it"):
                loss.backward()


@pytest.mark.parametrize("kind", GRADIENTS[:3])
def test_tensors_of_others_are_refused_where_nothing_is_come_back_to(kind: str) -> None:
    """Neither state nor field has a gradient, so that no backward pass would look at it."""
    outside = nn.Linear(3, 3).double()

    class Closed(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(outside(x))

    x, _ = problems.data()
    block = ODEBlock(Closed(), method="rk4", options={"steps": 2}, gradient=kind)
    with torch.no_grad():
        block(x)
    outside.requires_grad_(False)
    assert not block(x).requires_grad
    outside.requires_grad_(True)
    with pytest.raises(ValueError, match="are no attributes of it"):
        block(x)
    outside.requires_grad_(False)
    frozen = Divergent().requires_grad_(False)
    ODEBlock(frozen, method="rk4", options={"steps": 2}, gradient=kind)((x, torch.zeros(7).to(x)))


@pytest.mark.parametrize("kind", GRADIENTS)
def test_weights_that_torch_caches_have_their_gradients(kind: str) -> None:
    """Also those that are used beside the solve, and with the backward pass inside."""
    x, _ = problems.data()
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        field = problems.field()
        field.outer = nn.utils.parametrizations.weight_norm(field.outer)
        block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
        with nn.utils.parametrize.cached() if cached else contextlib.nullcontext():
            loss = block(x).square().sum() + block(x).sum() + field.outer.weight.square().sum()
            loss.backward()
        found.append([p.grad for p in field.parameters()])
    torch.testing.assert_close(found[1], found[0])


class Divergent(nn.Module):
    """A field that makes leaves of what it is given, as FFJORD's do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3).double()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = state[0]
        with torch.enable_grad():
            x.requires_grad_()
            t.requires_grad_()
            slope = torch.tanh(self.inner(torch.cat([x, t.expand(len(x), 1)], 1)))
            total = slope.sum() * t
            by_x, by_t = torch.autograd.grad(total, (x, t), create_graph=True)
        return slope, by_x.square().sum(1) + by_t / len(x)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
@pytest.mark.parametrize("solver", [{"rtol": 1e-9, "atol": 1e-9}, {"options": {"steps": 40}}])
def test_a_field_that_differentiates_by_time(kind: str, solver: dict[str, Any]) -> None:
    x, _ = problems.data()

    def run(kind: str) -> list[Tensor]:
        torch.manual_seed(1)
        field = Divergent()
        states = ODEBlock(field, gradient=kind, **solver)((x.clone(), x.new_zeros(len(x))))
        sum(part.square().sum() for part in states).backward()
        return [p.grad for p in field.parameters()]

    torch.testing.assert_close(run(kind), run("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GRADIENTS[:3])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("wanted", ["state", "parameter"])
def test_gradients_that_are_differentiated_again_say_what_to_use(
    kind: str, square: bool, wanted: str
) -> None:
    """Also where the cotangent is a constant, and all that depends is inside the solve."""
    x, _ = problems.data()
    field = problems.field()
    block = ODEBlock(field, method="rk4", options={"steps": 2}, gradient=kind)
    leaf = x.requires_grad_() if wanted == "state" else field.inner.weight
    output = block(x)
    energy = (output.square() if square else output).sum()
    (grad,) = torch.autograd.grad(energy, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="use gradient='direct'"):
        (output.sum() + grad.square().sum()).backward()


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("rule", ["adam", "paper"])
def test_hooks_are_called_once_with_whole_gradients(kind: str, rule: str) -> None:
    """Those on a parameter and on a context, and what the context retains."""
    field, (x, _) = Told(), problems.data()
    block = ODEBlock(field, rtol=1e-9, atol=1e-9, gradient=kind)
    encoder = nn.Linear(3, 3).double()
    weight = field.inner.inner.weight

    def run() -> Tensor:
        field.context = encoder(x)
        return block(x).square().sum()

    expected = torch.autograd.grad(run(), [weight, encoder.weight])
    seen: dict[str, list[Tensor]] = {"weight": [], "context": []}

    def triple(grad: Tensor) -> Tensor:
        seen["weight"].append(grad.clone())
        return 3 * grad

    with SNOpt(block, rule=rule):
        weight.register_hook(triple)
        loss = run()
        field.context.retain_grad()
        field.context.register_hook(seen["context"].append)
        loss.backward()
    assert [len(calls) for calls in seen.values()] == [1, 1]
    of_context = seen["context"][0]
    assert torch.equal(field.context.grad, of_context)
    found = [seen["weight"][0], of_context.T @ x]
    torch.testing.assert_close(found, list(expected), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(weight.grad, 3 * expected[0], rtol=1e-7, atol=1e-9)
