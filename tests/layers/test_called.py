"""How layers are called: by keyword, under no_grad, with nothing in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.optim.rules import RULES
from tests.support import problems
from tests.support.problems import GRADIENTS
from tests.support.training import flat

X, Y = problems.batch()


def every(rule: str) -> dict[str, Any]:
    """A refresh in every step."""
    return {} if rule == "gauss_newton" else {"refresh_every": 1}


class Named(nn.Module):
    """Every layer called by keyword, or by place."""

    def __init__(self, named: bool, gradient: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 3), nn.Conv1d(1, 2, 3)
        self.block = ODEBlock(
            NamedField(named), method="rk4", gradient=gradient, options={"steps": 2}
        )
        self.named = named
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.stem(input=x) if self.named else self.stem(x)).unsqueeze(1)
        out: Tensor = self.head(input=h) if self.named else self.head(h)
        return out.flatten(1)


class NamedField(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.named = nn.Linear(3, 4), nn.Linear(4, 3), named

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(input=x) if self.named else self.inner(x))
        out: Tensor = self.outer(input=h) if self.named else self.outer(h)
        return out


def train(model: nn.Module, optimizer: SNOpt, count: int = 2) -> Tensor:
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(X)
        optimizer.curvature_pass(outputs, "gaussian")
        ((outputs - Y).square().sum(1).mean() / 2).backward()
        optimizer.step()
    return flat(model)


# Gauss-Newton refuses adjoints, whatever the call.
CALLS = [(r, g) for r in RULES for g in GRADIENTS if r != "gauss_newton" or "adjoint" not in g]


@pytest.mark.parametrize(("rule", "gradient"), CALLS)
def test_layers_called_by_keyword(rule: str, gradient: str) -> None:
    models = [Named(named, gradient) for named in (False, True)]
    assert torch.equal(*(train(m, SNOpt(m, 0.1, rule=rule, **every(rule))) for m in models))


class Partly(nn.Module):
    """One layer whose output is taken for a constant."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seen, self.unseen, self.constant = nn.Linear(3, 3), nn.Linear(3, 3), constant

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.constant):
            shift = torch.tanh(self.unseen(x))
        return torch.tanh(self.seen(x)) + shift


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "gauss_newton"])
@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_a_layer_under_no_grad_in_a_field(rule: str, gradient: str) -> None:
    torch.manual_seed(0)
    block = ODEBlock(Partly(True), method="rk4", gradient=gradient, options={"steps": 2})
    model = nn.Sequential(nn.Linear(5, 3), block, nn.Linear(3, 2)).double()
    before = flat(block.field.unseen)
    optimizer = SNOpt(model, 0.1, rule=rule, basis="curvature", refresh_every=1)
    train(model, optimizer)
    assert "1.field.seen" in optimizer.factors()
    assert "1.field.unseen" not in optimizer.factors()
    assert torch.equal(flat(block.field.unseen), before)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Linear(5, 3), nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.features(x)
        out: Tensor = self.head(h)
        return out


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_under_no_grad_in_a_model(rule: str) -> None:
    model = Frozen()
    before = flat(model.features)
    train(model, SNOpt(model, 0.1, rule=rule, weight_decay=0.1, **every(rule)))
    assert torch.equal(flat(model.features), before)


@pytest.mark.filterwarnings("ignore:rule=.* is told by ODE blocks")
@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("rule", ["paper", "adam", "kfac"])
def test_an_empty_first_batch_teaches_nothing(rule: str, basis: str) -> None:
    models: list[Any] = [nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()]
    models.append(nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    models[1].load_state_dict(models[0].state_dict())
    ends = []
    for model, empty in zip(models, (False, True), strict=True):
        optimizer = SNOpt(model, 0.1, rule=rule, basis=basis, warmup_steps=0)
        if empty:
            before = flat(model)
            optimizer.zero_grad()
            model(X[:0]).sum().backward()
            optimizer.step()
            assert torch.equal(flat(model), before)
        train(model, optimizer, 1)
        ends.append(optimizer)
    assert ends[1].factors().keys() == ends[0].factors().keys()
    assert flat(models[1]).isfinite().all()
    if basis == "curvature":
        for name, pair in ends[0].factors().items():
            for got, want in zip(ends[1].factors()[name], pair, strict=True):
                torch.testing.assert_close(got, want)


class Transformed(nn.Module):
    """A layer that is called on one sample at a time, and differentiated there."""

    def __init__(self, transform: str) -> None:
        super().__init__()
        self.inner, self.transform = nn.Linear(5, 5), transform

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        function: Any = self.inner
        if self.transform == "grad":
            function = torch.func.grad(lambda z: self.inner(z).sin().sum())
        elif self.transform == "jvp":
            return torch.func.jvp(self.inner, (x,), (x,))[1]
        return torch.func.vmap(function)(x)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("place", ["field", "model"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_layer_within_a_transform(transform: str, place: str) -> None:
    torch.manual_seed(0)
    called = Transformed(transform)
    options = {"method": "rk4", "gradient": "direct", "options": {"steps": 2}}
    first: nn.Module = ODEBlock(called, **options) if place == "field" else Stepped(called)
    model = nn.Sequential(first, nn.Linear(5, 2)).double()
    optimizer = SNOpt(model, rule="paper", refresh_every=1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()
    coverage = optimizer.coverage()
    assert coverage.preconditioned.keys() == {"1.weight", "1.bias"}
    assert all("transform of torch.func" in reason for reason in coverage.fallback.values())


class Stepped(nn.Module):
    """One step of a field."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        return x + self.field(torch.zeros(()), x)


class Parts(nn.Module):
    """One layer, called on several parts of what a step is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3).double()

    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.stack([self.layer(x).square().mean() for x in parts]).sum()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sizes", [(7, 4), (7, 1), (7, 7)])
def test_calls_of_several_sizes(
    sizes: tuple[int, int], backwards: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest is the number of samples, and no warning is given for a row that all share."""
    model = Parts()
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    parts = [X[:n] for n in sizes]
    model(parts[::-1] if backwards else parts).backward()
    optimizer.step()
    rows = [torch.nn.functional.pad(x, (0, 1), value=1.0) for x in parts]
    cotangents = [2 * model.layer(x).detach() / (3 * len(x)) for x in parts]
    a, b = optimizer.factors()["layer"]
    torch.testing.assert_close(a, sum(z.T @ z for z in rows) / 7)
    torch.testing.assert_close(b, 49 / sum(sizes) * sum(c.T @ c for c in cotangents))
    assert ("(layer 4 to 7)" in caplog.text) == (sizes == (7, 4))


def test_micro_batches_of_several_sizes_agree(caplog: pytest.LogCaptureFixture) -> None:
    model = Parts()
    optimizer = SNOpt(model, rule="paper", lr=0.0)
    for n in (4, 2, 1):
        model([X[:n], X[:n]]).backward()
    optimizer.step()
    assert not caplog.text
