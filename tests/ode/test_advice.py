"""Advice on solvers: errors against something independent, candidates that do what they say."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import snopt
from snopt import ODEBlock


class Rotation(nn.Module):
    """x' = A x, whose flow is the matrix exponential."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.0, 2.0], [-2.0, -0.1]]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x @ self.matrix.T


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


def start() -> Tensor:
    return torch.tensor([[1.0, 0.5], [-0.3, 0.8]])


@pytest.mark.parametrize("steps", [1, 4])
def test_error_is_that_of_the_exact_flow(steps: int) -> None:
    block = ODEBlock(Rotation(), method="rk4", gradient="direct", options={"steps": steps})
    found = snopt.gradient_error(block, start(), seed=3)
    v = torch.randn((2, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradients(solve, dtype):
        a = block.field.matrix.detach().to(dtype).requires_grad_()
        x = start().to(dtype).requires_grad_()
        y = solve(a, x)
        grads = torch.autograd.grad((y * v.to(dtype)).sum(), (a, x))
        return [t.detach().double() for t in (y, *grads)]

    exact = gradients(lambda a, x: x @ torch.matrix_exp(a).T, torch.float64)
    times = torch.linspace(0, 1, steps + 1)
    ours = gradients(
        lambda a, x: torchdiffeq.odeint(lambda t, x: x @ a.T, x, times, method="rk4")[-1],
        torch.float32,
    )
    # torchdiffeq's rk4 is the 3/8 rule, and so is ours.
    wanted = [float((b - a).norm() / a.norm()) for a, b in zip(exact, ours, strict=True)]
    got = [found.output, found.parameters, found.state]
    assert got == pytest.approx(wanted, rel=1e-2)
    cosine = torch.nn.functional.cosine_similarity(exact[1].flatten(), ours[1].flatten(), dim=0)
    assert found.cosine == pytest.approx(float(cosine), abs=1e-6)


def test_a_tight_block_has_hardly_any_error() -> None:
    block = ODEBlock(Net(), rtol=1e-9, atol=1e-9).double()
    found = snopt.gradient_error(block, start().double())
    assert max(found.parameters, found.state, found.output) < 1e-7
    assert found.cosine == pytest.approx(1.0)


def test_times_and_tuples_of_states() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7))

        def forward(self, t: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return -self.rate * x[0], x[0]

    block = ODEBlock(Two(), rtol=1e-4, atol=1e-4)
    x = (start(), torch.zeros(2, 2))
    found = snopt.gradient_error(block, x, torch.tensor([0.0, 0.3, 2.0]))
    assert 0 < found.parameters < 1e-2


def test_times_are_what_a_block_takes() -> None:
    block = ODEBlock(Net(), rtol=1e-4, atol=1e-4)
    times = [0.0, 0.3, 2.0]
    found = snopt.gradient_error(block, start(), times)
    assert found == snopt.gradient_error(block, start(), torch.tensor(times, dtype=torch.float64))
    assert snopt.advise(block, start(), times).own.error == found


class Waves(nn.Module):
    """Complex weights of Fourier coefficients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(torch.tanh(x)) @ self.weight).real


def test_complex_parameters_count_with_both_their_parts() -> None:
    block = ODEBlock(Waves(), gradient="direct", rtol=1e-2, atol=1e-2)
    found = snopt.gradient_error(block, start(), seed=3)
    v = torch.randn((2, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fine = ODEBlock(Waves(), rtol=1e-9, atol=1e-9)
    fine.field.weight.data = fine.field.weight.data.to(torch.complex128)
    gradients = []
    for solved, x in ((block, start()), (fine, start().double())):
        (solved(x) * v.to(x)).sum().backward()
        gradients.append(torch.view_as_real(solved.field.weight.grad).double())
    wanted = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert found.parameters == pytest.approx(float(wanted), rel=1e-3)


class Driven(Net):
    """A field with tensors that are neither parameters nor buffers."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x) @ self.matrix + self.context[0]


def test_what_a_model_has_computed_for_a_field() -> None:
    block = ODEBlock(Driven())
    block.field.matrix = torch.tensor([[0.5, 0.1], [0.0, -0.5]])
    block.field.context = (nn.Linear(2, 2)(start()),)
    found = snopt.gradient_error(block, start())
    assert 0 < max(found.parameters, found.state, found.output) < 1e-2
    assert snopt.advise(block, start()).own.error == found
    assert block.field.matrix.dtype == block.field.context[0].dtype == torch.float32


def test_memory_is_not_looked_at_while_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def kept(spare: set[int]) -> Any:
        looked.append(spare)
        return nullcontext({})

    monkeypatch.setattr("snopt.advice._kept_bytes", kept)
    advice = snopt.advise(ODEBlock(Net()), start())
    assert len(looked) == 1 + len(advice.candidates)


def test_nothing_is_left_behind() -> None:
    block = ODEBlock(Net(), gradient="direct", options={"warm_start": True})
    optimizer = snopt.SNOpt(block, 0.1, rule="paper")
    block(start()).sum().backward()
    before = copy.deepcopy(block.state_dict())
    grads = [p.grad.clone() for p in block.parameters()]
    counters = block.nfe_forward, block.nfe_backward, block.nfe_curvature, block.samples
    memory = block.solver_state()
    snopt.gradient_error(block, start())
    snopt.advise(block, start())
    assert counters == (block.nfe_forward, block.nfe_backward, block.nfe_curvature, block.samples)
    assert block.solver_state() == memory
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name])
    for p, grad in zip(block.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
    optimizer.step()
    assert optimizer.factors().keys() == {"field.net.0", "field.net.2"}


def test_advice_counts_evaluations_and_names_the_quickest_that_is_good_enough() -> None:
    block = ODEBlock(Net(), (0.0, 2.0), rtol=1e-5, atol=1e-5)
    advice = snopt.advise(block, start())
    assert advice.own.arguments["gradient"] == "adjoint"
    assert advice.own.evaluations[1] > 0
    everybody = (advice.own, *advice.candidates)
    fixed = {
        c.arguments["options"]["steps"]: c
        for c in advice.candidates
        if c.arguments["method"] == "rk4"
    }
    assert {steps: c.evaluations for steps, c in fixed.items()} == {
        1: (4, 0), 2: (8, 0), 4: (16, 0), 8: (32, 0)
    }  # fmt: skip
    errors = [fixed[steps].error.parameters for steps in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert fixed[8].memory > 1.9 * fixed[4].memory > 3.6 * fixed[2].memory
    good = [c for c in everybody if max(c.error.parameters, c.error.output) <= advice.tolerance]
    assert advice.best.seconds == min(c.seconds for c in good)
    shown = str(advice)
    assert shown.count("<- best") == 1
    assert shown.count("(as it is)") == 1
    again = eval(advice.best.line, {"ODEBlock": ODEBlock, "field": block.field})
    assert snopt.gradient_error(again, start()).parameters <= advice.tolerance


def test_a_candidate_that_fails_says_why() -> None:
    class Sharp(nn.Module):
        """Hardly moves, but explodes in a long explicit step."""

        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(40.0))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return -self.rate * x**5

    advice = snopt.advise(ODEBlock(Sharp(), (0.0, 1.0)), 3.0 * start())
    failed = [c for c in advice.candidates if c.error is None]
    assert failed
    assert all("non-finite" in c.reason for c in failed)
    assert "failed" in str(advice)
    assert advice.candidates[-1] in failed


def test_a_tolerance_is_positive() -> None:
    with pytest.raises(ValueError, match="tolerance=0: must be positive"):
        snopt.advise(ODEBlock(Net()), start(), tolerance=0)


@pytest.mark.filterwarnings("ignore:field Drawing draws random numbers")  # of candidates
@pytest.mark.parametrize("ask", [snopt.gradient_error, snopt.advise])
def test_random_numbers_go_on_where_they_were(ask) -> None:
    class Drawing(Net):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return super().forward(t, x) + 0 * torch.rand(())

    block = ODEBlock(Drawing(), method="rk4", gradient="direct", options={"steps": 2})
    before = torch.get_rng_state()
    ask(block, start())
    assert torch.equal(torch.get_rng_state(), before)


class Assigned(nn.Module):
    """A field whose function was assigned from outside."""

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        layer = self.layer
        self.function = (lambda module, x: layer(x)) if closed else (lambda m, x: m.layer(x))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.function(self, x))


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize("ask", [snopt.gradient_error, snopt.advise])
def test_functions_that_hold_the_blocks_own_layers(ask, gradient: str) -> None:
    """A copy would call the original's, and its parameters have no gradient."""
    ask(ODEBlock(Assigned(False), gradient=gradient), start())
    block = ODEBlock(Assigned(True), gradient=gradient)
    with pytest.raises(ValueError, match=r"of the original \(field.layer.bias, field.layer.weight"):
        ask(block, start())
    assert all(p.grad is None for p in block.parameters())
