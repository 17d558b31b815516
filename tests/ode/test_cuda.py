"""ODE blocks on CUDA: solves and gradients of the CPU, random fields, compiled steps, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snopt
from snopt import ODEBlock, SolverError, exact
from tests.support import problems
from tests.support.devices import DEVICE, HALVES, ONLY_CUDA, flat, same
from tests.support.problems import GRADIENTS, SOLVERS
from tests.support.systems import SYSTEMS, build

pytestmark = pytest.mark.gpu


def answers(
    make: Callable[[], ODEBlock],
    device: str,
    dtype: torch.dtype = torch.float64,
    t: Any = None,
    times_on: str = "cpu",
) -> Tensor:
    """States and gradients as one vector."""
    x, y = (z.to(device, dtype) for z in problems.data())
    x.requires_grad_()
    block = make().to(device, dtype)
    out = block(x) if t is None else block(x, torch.tensor(t, dtype=dtype, device=times_on))
    assert out.device == x.device
    problems.squares(y)(out if t is None else out.mean(0)).backward()
    return flat([out, x.grad, *(p.grad for p in block.parameters())])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solves_are_those_of_the_cpu(solver: str, gradient: str) -> None:
    def make() -> ODEBlock:
        coarse = {"options": {"step_size": 0.1}} if solver == "midpoint" else {}
        return ODEBlock(problems.field(), gradient=gradient, **{**SOLVERS[solver], **coarse})

    same(answers(make, DEVICE), answers(make, "cpu"), 1e-9)


#: Of these methods, checkpoint can repeat the steps.
REPEATED = ("dopri5", "bosh3")


@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        (method, gradient)
        for method in (*REPEATED, "fehlberg2", "adaptive_heun", "dopri8")
        for gradient in GRADIENTS
        if gradient != "checkpoint" or method in REPEATED
    ],
)
def test_error_control_in_single_precision(method: str, gradient: str) -> None:
    def make() -> ODEBlock:
        return ODEBlock(problems.field(), method=method, gradient=gradient)

    wanted = answers(make, "cpu", torch.float32)
    same(answers(make, DEVICE, torch.float32), wanted, 1e-3)


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams", "rk4"])
def test_multistep_methods(method: str, gradient: str) -> None:
    def make() -> ODEBlock:
        return ODEBlock(
            problems.field(), method=method, gradient=gradient, options={"step_size": 0.1}
        )

    same(answers(make, DEVICE), answers(make, "cpu"), 1e-8)


@pytest.mark.parametrize("times_on", ["cpu", DEVICE])
@pytest.mark.parametrize("t", [[0.0, 0.3, 1.0], [1.0, 0.5, 0.0]])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_times_may_be_on_either_device(gradient: str, t: list[float], times_on: str) -> None:
    def make() -> ODEBlock:
        return ODEBlock(problems.field(), gradient=gradient, rtol=1e-7, atol=1e-7)

    found = answers(make, DEVICE, t=t, times_on=times_on)
    same(found, answers(make, "cpu", t=t), 1e-9)


@pytest.mark.parametrize("gradient", [g for g in GRADIENTS if g != "direct"])  # no graph there
def test_steps_of_each_sample(gradient: str) -> None:
    torchode = pytest.importorskip("snopt.ode.methods.torchode")
    pytest.importorskip("torchode")

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.inner(x)) * (1 + t.reshape(-1, 1))

    def make() -> ODEBlock:
        torch.manual_seed(0)
        return ODEBlock(Own(), method=torchode.Torchode(), gradient=gradient, rtol=1e-6, atol=1e-6)

    same(answers(make, DEVICE), answers(make, "cpu"), 1e-8)


@pytest.mark.parametrize("gradient", ["adjoint", "checkpoint"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_families_of_dynamics(name: str, gradient: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        system, parts = build(name)
        block = ODEBlock(system.to(device), rtol=1e-7, atol=1e-7, gradient=gradient)
        start = [part.to(device) for part in parts]
        out = block(start[0] if len(start) == 1 else tuple(start))
        whole = out if isinstance(out, Tensor) else torch.cat(out, dim=1)
        whole.square().sum().backward()
        found.append(flat([whole, *(p.grad for p in system.parameters() if p.grad is not None)]))
    same(*found, 1e-8)


class Sum(nn.Module):
    """A field of two parts with times of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = problems.field()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, gained = state
        slope = self.inner(t, x)
        return slope, slope.square().sum(1) - gained


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_states_of_several_parts(gradient: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        x = problems.data()[0].to(device).requires_grad_()
        block = ODEBlock(Sum(), gradient=gradient, rtol=1e-7, atol=1e-7).to(device)
        states = block((x, x.new_zeros(len(x))), [0.0, 0.4, 1.0])
        sum(part.square().mean() for part in states).backward()
        found.append(flat([*states, x.grad, *(p.grad for p in block.parameters())]))
    same(*found, 1e-9)


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_numbers_that_were_drawn_are_drawn_again(method: str, dropout: bool) -> None:
    """The gradient and the random stream afterwards are those of direct backpropagation."""
    found = []
    for gradient in ("direct", "checkpoint", "checkpoint"):
        field = problems.Noisy(dropout).double().to(DEVICE)
        x = problems.data()[0].to(DEVICE).requires_grad_()
        block = ODEBlock(field, method=method, gradient=gradient, options={"steps": 3})
        torch.manual_seed(3)
        block(x).square().sum().backward()
        after = torch.rand(1, device=DEVICE), torch.rand(1)
        found.append(flat([x.grad, *(p.grad for p in field.parameters()), *after]))
    same(found[1], found[0], 1e-6)
    same(found[2], found[0], 1e-6)


@pytest.mark.filterwarnings("ignore:field Noisy draws random numbers")
@pytest.mark.parametrize("gradient", ["adjoint", "adjoint-seminorm"])
def test_the_way_back_leaves_the_random_stream_alone(gradient: str) -> None:
    field = problems.Noisy(True).double().to(DEVICE)
    x = problems.data()[0].to(DEVICE).requires_grad_()
    block = ODEBlock(field, method="rk4", gradient=gradient, options={"steps": 2})
    torch.manual_seed(3)
    block(x)
    wanted = torch.rand(4, device=DEVICE), torch.rand(4)
    torch.manual_seed(3)
    block(x).square().sum().backward()
    assert torch.equal(torch.rand(4, device=DEVICE), wanted[0])
    assert torch.equal(torch.rand(4), wanted[1])


def test_a_field_elsewhere_is_named() -> None:
    class Elsewhere(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x.cpu()

    x = problems.data()[0].to(DEVICE)
    if DEVICE == "cuda":
        with pytest.raises(ValueError, match=r"slope on cpu, expected cuda:0, where the state is"):
            ODEBlock(Elsewhere())(x)
        with pytest.raises(RuntimeError, match="same device"):
            ODEBlock(problems.field())(x)
        with pytest.raises(ValueError, match="device"):
            ODEBlock(Sum().to(DEVICE))((x, x.new_zeros(len(x)).cpu()))


@pytest.mark.parametrize("gradient", ["adjoint", "adjoint-seminorm"])
def test_a_solve_that_fails_on_the_way_back(gradient: str) -> None:
    """Backward passes run in another thread there: the error comes out of it as it is."""

    class Broken(nn.Module):
        factor = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.ones(3).double())

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.rate * x * Broken.factor

    field = Broken().to(DEVICE)
    out = ODEBlock(field, gradient=gradient)(problems.data()[0].to(DEVICE))
    Broken.factor = float("nan")
    with pytest.raises(SolverError, match="non-finite"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_steps_are_the_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    def make(compiled: bool) -> Callable[[], ODEBlock]:
        options = {"steps": 3, "compile": compiled}
        return lambda: ODEBlock(problems.field(), method="rk4", gradient="direct", options=options)

    same(answers(make(True), DEVICE), answers(make(False), "cpu"), 1e-9)
    assert "uncompiled" not in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradient", ["adjoint", "checkpoint"])
def test_a_compiled_field(gradient: str) -> None:
    def make(compiled: bool) -> ODEBlock:
        field = problems.field()
        if compiled:
            field.compile()
        return ODEBlock(field, method="rk4", gradient=gradient, options={"steps": 3})

    same(answers(lambda: make(True), DEVICE), answers(lambda: make(False), "cpu"), 1e-9)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("half", HALVES)
def test_autocast_holds_on_the_way_back(gradient: str, half: torch.dtype) -> None:
    """The field is evaluated in half precision there, too, wherever that thread's autocast is."""
    seen = set()
    field = problems.field().float()
    field.outer.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    block = ODEBlock(field, method="rk4", gradient=gradient, options={"steps": 4}).to(DEVICE)
    x = problems.data()[0].to(DEVICE, torch.float32).requires_grad_()
    with torch.autocast(DEVICE, half):
        out = block(x)
    out.float().square().sum().backward()
    assert seen == {half}
    plain = answers(
        lambda: ODEBlock(problems.field(), method="rk4", gradient=gradient, options={"steps": 4}),
        "cpu",
    )
    assert bool(x.grad.isfinite().all())
    assert plain.isfinite().all()
    wanted = problems.data()[0].requires_grad_()
    ODEBlock(problems.field(), method="rk4", options={"steps": 4})(wanted).square().sum().backward()
    same(flat([x.grad]), flat([wanted.grad]), 0.05)


@pytest.mark.filterwarnings("ignore")
def test_advice_and_gradient_errors() -> None:
    block = ODEBlock(problems.field(), rtol=1e-4, atol=1e-4)
    x = problems.data()[0]
    wanted = snopt.gradient_error(block, x)
    found = snopt.gradient_error(block.to(DEVICE), x.to(DEVICE))
    for name in ("parameters", "state", "output"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-3)
    advice = snopt.advise(block, x.to(DEVICE))
    assert advice.best.error is not None
    assert all(c.error is not None for c in (advice.own, *advice.candidates)), str(advice)


def test_second_order_adjoints() -> None:
    found = []
    for device in (DEVICE, "cpu"):

        class Alone(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(2, 2)

            def forward(self, t: Tensor, x: Tensor) -> Tensor:
                return torch.tanh(self.inner(x)) + t

        torch.manual_seed(0)
        field = Alone().double().to(device)
        x = torch.tensor([0.3, -0.7], dtype=torch.float64, device=device)
        q = exact.second_order(field, x, (0.0, 1.0), x, torch.outer(x, x), hessian=True)
        low = exact.low_rank(field, x, (0.0, 1.0), x.unsqueeze(0))
        found.append(flat([*q, *low]))
    same(*found, 1e-7)


def peak(gradient: str, steps: int) -> int:
    """Bytes above what was held before, at most, of one forward and backward pass."""
    torch.manual_seed(0)
    field = problems.Field(width=64).to(DEVICE)
    x = torch.randn(4096, 3, device=DEVICE)
    block = ODEBlock(field, method="rk4", gradient=gradient, options={"steps": steps})
    for _ in range(2):  # whatever is kept for good is there by then
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        block(x).square().mean().backward()
        torch.cuda.synchronize()
        found = torch.cuda.max_memory_allocated() - before
        block.zero_grad()
    return found


@ONLY_CUDA
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_memory_of_more_steps(gradient: str) -> None:
    few, many = peak(gradient, 10), peak(gradient, 80)
    if gradient.startswith("adjoint"):
        assert many < 1.1 * few
    elif gradient == "direct":
        assert many > 5 * few
    else:  # a state a step
        states = 70 * 4096 * 3 * 4
        assert many - few < 1.5 * states
