"""Compiled steps: the eager numbers, no compilation for new times, and a way back."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from snopt import ODEBlock, SNOpt
from snopt.ode.compiled import CompileClock
from tests.support import problems
from tests.support.problems import GRADIENTS

# The compiler's own imports, first of all in a process.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def block(kind: str, **options: Any) -> ODEBlock:
    return ODEBlock(problems.field(), method="rk4", gradient=kind, options={"steps": 3, **options})


def gradient(layer: ODEBlock, x: Tensor, y: Tensor, times: list[float]) -> tuple[Tensor, Tensor]:
    layer.zero_grad()
    start = x.clone().requires_grad_()
    states = layer(start, times)
    problems.squares(y)(states[-1]).backward()
    return states.detach(), torch.cat([start.grad.reshape(-1), problems.gradients(layer)])


def test_compiled_steps_are_the_eager_ones_and_compile_once() -> None:
    x, y = problems.data()
    fast = block("direct", compile=True)
    plain = block("direct")
    for i, times in enumerate(([0.0, 1.0], [0.0, 0.3, 0.7], [2.0, 1.0], [0.5, 0.9, 1.1, 1.6])):
        if i == 1:
            seconds = CompileClock.seconds
            assert seconds > 0
        for got, want in zip(
            gradient(fast, x, y, times), gradient(plain, x, y, times), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    # The first call's state is a leaf or a step's result: both have been seen by now.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for times in ([3.0, 4.0], [0.1, 0.25, 0.9]):
            gradient(fast, x, y, times)


def test_a_compiled_model_is_compiled_once() -> None:
    x, y = problems.data()
    layer = block("direct")
    model = torch.compile(nn.Sequential(layer, nn.Tanh()), backend="eager")
    problems.squares(y)(model(x)).backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            problems.squares(y)(model(x)).backward()
    assert layer.nfe_forward == 4 * 12  # four stages of three steps, four times
    torch._dynamo.reset()


def test_a_step_is_that_of_the_method_and_field_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda eager, **_: eager)
    x, _ = problems.data()
    layer = block("direct", compile=True)
    for name, value in (
        ("solver", dataclasses.replace(layer.solver, method="midpoint")),
        ("solver", dataclasses.replace(layer.solver, method="heun2")),
        ("field", copy.deepcopy(layer.field)),
    ):
        layer(x)
        setattr(layer, name, value)
    for p in layer.parameters():
        p.data.mul_(0.5)
    plain = ODEBlock(layer.field, method="heun2", gradient="direct", options={"steps": 3})
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in GRADIENTS if k != "direct"])
def test_every_gradient_takes_compiled_steps(kind: str) -> None:
    x, y = problems.data()
    pairs = zip(
        gradient(block(kind, compile=True), x, y, [0.0, 1.0]),
        gradient(block(kind), x, y, [0.0, 1.0]),
        strict=True,
    )
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_states_of_several_tensors_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the graphs alone, without code generated for them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 3)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.tanh(self.b(state[1])) * (1 + t), torch.sin(self.a(state[0]))

    torch.manual_seed(0)
    field = Pair().double()
    counters.clear()
    for count in (4, 6):  # another batch size
        x = torch.randn(count, 3).double(), torch.randn(count, 2).double()
        found = []
        for compiles in (True, False):
            options = {"steps": 2, "compile": compiles}
            layer = ODEBlock(field, method="rk4", gradient="direct", options=options)
            field.zero_grad()
            a, b = layer(x)
            (a.square().sum() + b.square().sum()).backward()
            found.append(torch.cat([a.flatten(), b.flatten(), problems.gradients(field)]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert counters["stats"]["unique_graphs"] >= 2


def test_a_refresh_under_compiled_steps() -> None:
    x, y = problems.data()
    found = []
    for options in ({}, {"compile": True}):
        layer = block("direct", **options)
        optimizer = SNOpt(layer, 0.02, rule="paper", refresh_every=2)
        for _ in range(3):
            optimizer.zero_grad()
            problems.squares(y)(layer(x)).backward()
            optimizer.step()
        found.append(optimizer.factors())
    for name, pair in found[0].items():
        for got, want in zip(found[1][name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settings", [{"rule": "kfac"}, {"basis": "curvature"}])
def test_curvature_of_a_compiled_model(settings: dict[str, Any]) -> None:
    """Its layers are heard, and it is compiled no more once both kinds of steps were seen."""
    x, y = problems.data()
    found: list[list[Tensor]] = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), block("direct"), nn.Linear(3, 3)).double()
        optimizer = SNOpt(model, 0.02, refresh_every=3, **settings)
        called = torch.compile(model, backend="eager") if compiles else model
        for step in range(8):
            optimizer.zero_grad()
            with torch._dynamo.config.patch(error_on_recompile=step > 4):
                problems.squares(y)(called(x)).backward()
            optimizer.step()
        factors = [x for name in sorted(optimizer.factors()) for x in optimizer.factors()[name]]
        assert optimizer.coverage().fraction == 1.0
        found.append([*factors, *(p.detach() for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)
    torch._dynamo.reset()


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # torch's default
def test_a_compiled_model_whose_batches_differ_in_size() -> None:
    """It is compiled anew in a step without hooks, for all sizes; layers are heard later, too."""
    torch.compiler.reset()
    x, y = problems.data()
    found: list[list[Tensor]] = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        optimizer = SNOpt(model, 0.02, rule="kfac", refresh_every=2)
        called = torch.compile(model, backend="eager") if compiles else model
        for size in (7, 4, 5, 7, 6):
            optimizer.zero_grad()
            problems.squares(y[:size])(called(x[:size])).backward()
            optimizer.step()
        found.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)
    torch.compiler.reset()


def trained(
    model: nn.Module, called: Callable[[Tensor], Tensor], steps: int, state: Any = None
) -> SNOpt:
    x, y = problems.data()
    optimizer = SNOpt(model, 0.02, rule="kfac", refresh_every=3)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.zero_grad()
        problems.squares(y)(called(x)).backward()
        optimizer.step()
    return optimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 3), block("direct"), nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.block(self.first(x)))
        return found


def test_curvature_of_a_compiled_model_that_goes_on() -> None:
    """It first runs in a step that measures no curvature, and its layers are heard later."""
    found = []
    for compiles in (False, True):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = Model()
        state = trained(model, model, 4).state_dict()
        called = torch.compile(model, backend="eager") if compiles else model
        found.append(trained(model, called, 7, state).factors())
    torch.compiler.reset()
    for name, pair in found[0].items():
        for got, want in zip(found[1][name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # torch's default
def test_a_model_that_ran_compiled_before_is_told(caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    for _ in range(2):
        called = torch.compile(Model(), backend="eager")
        called(problems.data()[0]).sum().backward()
    model = Model()
    called = torch.compile(model, backend="eager")
    with trained(model, called, 1) as optimizer:
        assert {name.split(".")[0] for name in optimizer.coverage().fallback} == {"first", "last"}
    assert caplog.text.count("or call torch.compiler.reset() after it") == 1
    optimizer = SNOpt(model, 0.02, rule="kfac")
    torch.compiler.reset()
    called(problems.data()[0]).sum().backward()
    optimizer.step()
    assert optimizer.coverage().fraction == 1.0
    torch.compiler.reset()


def test_a_compiler_that_fails_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda function, *a, **k: broken)
    x, y = problems.data()
    layer = block("direct", compile=True)
    with caplog.at_level(logging.WARNING, logger="snopt"):
        for _ in range(3):
            got = gradient(layer, x, y, [0.0, 1.0])
    assert len([r for r in caplog.records if "torch.compile failed" in r.message]) == 1
    assert "no C++ compiler" in caplog.text
    for one, other in zip(got, gradient(block("direct"), x, y, [0.0, 1.0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
