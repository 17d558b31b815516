"""Several intervals of an ODE-RNN in one compiled region: the same numbers, compiled once."""

from __future__ import annotations

import copy
import logging
import pickle
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters

from snopt import SNOpt, SolverError
from snopt.ode.compiled import CompileClock
from tasks.engine.records.clock import compile_seconds
from tasks.models.ode_rnn import ODERNN

# The compiler's own imports, first of all in a process.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

LAST = torch.tensor([6, 2, 4, 5])


def model(**options: Any) -> ODERNN:
    torch.manual_seed(0)
    solver = {"method": "midpoint", "gradient": "direct", "options": {"steps": 2, **options}}
    rnn = ODERNN(3, 5, 2, elapsed=0.7, solver=solver).double()
    rnn.REGION = 2  # type: ignore[misc]
    return rnn


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(4, 8, 3, dtype=torch.float64, generator=generator)
    return observations, torch.rand(4, 8, generator=generator) < 0.8


def step(rnn: ODERNN, seed: int, last: Tensor = LAST) -> tuple[Tensor, Tensor]:
    rnn.zero_grad()
    logits = rnn(*batch(seed), last)
    logits.square().sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in rnn.parameters()])


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Regions run eagerly here; lists the number of points in each call of one."""
    calls: list[int] = []

    def pretend(function: Any, **options: Any) -> Any:
        def region(h: Tensor, projected: Tensor, *rest: Tensor) -> Tensor:
            if rest:  # a single step has no further arguments
                calls.append(len(projected))
            return function(h, projected, *rest)

        return region

    monkeypatch.setattr(torch, "compile", pretend)
    return calls


# What an earlier process compiled would be found again, and take no time.
@torch._inductor.config.patch(fx_graph_cache=False)
@torch._functorch.config.patch(enable_autograd_cache=False)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_region_is_its_intervals_and_compiles_once(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the graphs alone, which is quick, and with code generated for them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    fast, plain = model(compile=True), model()
    seconds = CompileClock.seconds
    for seed, last in enumerate((LAST, LAST - 1)):  # six intervals; five
        for got, want in zip(step(fast, seed, last), step(plain, seed, last), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert fast.block.nfe_forward == plain.block.nfe_forward == 11 * 4
    assert CompileClock.seconds > seconds
    seconds, graphs = CompileClock.seconds, counters["stats"]["unique_graphs"]
    assert graphs >= 2  # two intervals, one interval
    if backend == "inductor":
        assert compile_seconds("forward") > 0
        assert compile_seconds("backward") > 0  # by a name that differs between versions
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, last in ((2, LAST), (3, LAST - 1), (4, LAST - 2)):
            step(fast, seed, last)
    assert counters["stats"]["unique_graphs"] == graphs
    assert CompileClock.seconds == seconds


def test_a_watched_step_is_an_ordinary_one(uncompiled: list[int]) -> None:
    found = []
    for options in ({}, {"compile": True}):
        rnn = model(**options)
        optimizer = SNOpt(rnn, 0.02, rule="paper", refresh_every=3, precondition="all")
        regions = []
        for seed in range(5):
            uncompiled.clear()
            step(rnn, seed)
            regions.append(list(uncompiled))
            optimizer.step()
        found.append((optimizer.factors(), step(rnn, 9)))
    assert regions == [[], [2, 2, 2], [2, 2, 2], [], [2, 2, 2]]
    assert found[0][0].keys() == found[1][0].keys()
    for name, pair in found[0][0].items():
        for got, want in zip(found[1][0][name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    for got, want in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("part", ["cell", "cell.gates", "block", "block.field.linear2"])
def test_hooks_inside_are_called(uncompiled: list[int], part: str) -> None:
    rnn = model(compile=True)
    heard: list[int] = []
    handle = rnn.get_submodule(part).register_forward_hook(lambda *a: heard.append(1))
    step(rnn, 0)
    assert len(heard) >= 6
    assert uncompiled == []
    handle.remove()
    step(rnn, 0)
    assert uncompiled == [2, 2, 2]


def test_evaluation_and_other_gradients_are_not_compiled(uncompiled: list[int]) -> None:
    rnn = model(compile=True)
    with torch.no_grad():
        rnn(*batch(0), LAST)
    rnn.eval()
    step(rnn, 0)
    assert 2 not in uncompiled


def test_a_compiler_that_fails_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda function, **k: broken)
    rnn = model(compile=True)
    with caplog.at_level(logging.WARNING, logger="snopt"):
        for _ in range(3):
            got = step(rnn, 0)
    assert len([r for r in caplog.records if "torch.compile failed" in r.message]) == 1
    assert "the ODE-RNN runs uncompiled" in caplog.text
    for one, other in zip(got, step(model(), 0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_copy_has_its_own_region(uncompiled: list[int]) -> None:
    rnn = model(compile=True)
    want = step(rnn, 0)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        with torch.no_grad():
            rnn.block.field.linear4.bias += 1.0
        for one, two in zip(step(other, 0), want, strict=True):
            assert torch.equal(one, two)
        with torch.no_grad():
            rnn.block.field.linear4.bias -= 1.0


def test_a_state_that_is_not_finite(uncompiled: list[int]) -> None:
    rnn = model(compile=True)
    with torch.no_grad():
        rnn.block.field.linear4.bias.fill_(torch.inf)
    with pytest.raises(SolverError, match="non-finite state") as raised:
        step(rnn, 0)
    assert raised.value.nfe == 8
    assert uncompiled == [2]


def test_another_module_in_the_block_s_place(uncompiled: list[int]) -> None:
    class Plain(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return 0.5 * h

    rnn = model(compile=True)
    rnn.block = Plain()  # type: ignore[assignment]
    logits = rnn(*batch(0), LAST)
    assert logits.shape == (4, 2)
    assert uncompiled == []
