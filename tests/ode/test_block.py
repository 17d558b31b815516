"""ODEBlock as a layer: shapes, types, counters, warm start, saving, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, load_solver_state, solver_state
from tests.support import problems
from tests.support.problems import GRADIENTS


class Rotation(nn.Module):
    """x' = w (-x2, x1): x(t) is x turned by the angle w t."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.3))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.w * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def turned(x: Tensor, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], dim=1)


@pytest.mark.parametrize(
    ("method", "options", "limit"),
    [
        ("dopri5", {}, 1e-6),
        ("dopri8", {}, 1e-4),
        ("bosh3", {}, 1e-4),
        ("fehlberg2", {}, 1e-3),
        ("adaptive_heun", {}, 1e-3),
        ("rk4", {"step_size": 0.05}, 1e-6),
        ("euler", {"step_size": 0.01}, 3e-2),
        ("midpoint", {"step_size": 0.01}, 1e-4),
        ("heun2", {"step_size": 0.01}, 1e-4),
        ("heun3", {"step_size": 0.01}, 1e-6),
        ("explicit_adams", {"step_size": 0.05}, 5e-2),
        ("implicit_adams", {"step_size": 0.01}, 1e-5),
        ("rk4", {"steps": 30}, 1e-6),
        ("dopri5", {"steps": 30}, 1e-9),
        ("euler", {"steps": 200}, 2e-2),
    ],
)
def test_analytic_solution(method: str, options: dict[str, Any], limit: float) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    tolerance = 1e-6 if method in ("adaptive_heun", "fehlberg2") else 1e-8
    for span in ((0.0, 1.0), (0.5, -0.5)):
        block = ODEBlock(
            Rotation().double().requires_grad_(False),
            span,
            method=method,
            rtol=tolerance,
            atol=tolerance,
            options=options,
        )
        expected = turned(x, block.field.w.item() * (span[1] - span[0]))
        for y in (block(x), block.eval()(x)):
            assert float((y - expected).norm() / expected.norm()) < limit


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")  # torchdiffeq's own
def test_scipy_solver_runs() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    block = ODEBlock(
        Rotation().double(), method="scipy_solver", rtol=1e-8, atol=1e-8, options={"solver": "RK45"}
    )
    torch.testing.assert_close(block(x), turned(x, block.field.w.item()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("options", [{}, {"steps": 20}], ids=["adaptive", "steps"])
def test_trajectory(kind: str, options: dict[str, Any]) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    block = problems.tight(Rotation().double(), gradient=kind, options=options, method="dopri5")
    for times in ([0.0, 0.1, 0.7, 2.0], [1.0, 0.2, -1.0]):
        states = block(x, torch.tensor(times))
        assert states.shape == (len(times), 4, 2)
        assert torch.equal(states[0], x)
        for t, state in zip(times, states, strict=True):
            expected = turned(x, block.field.w.item() * (t - times[0]))
            torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(block(x, [0.0, 0.5]), block(x, torch.tensor([0.0, 0.5])))


@pytest.mark.parametrize("kind", GRADIENTS)
def test_tuple_states(kind: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Rotation()

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, _ = state
            return self.inside(t, x), x.sum(1, keepdim=True).unsqueeze(2)

    x = torch.randn(4, 2, dtype=torch.float64)
    block = problems.tight(Twice().double(), gradient=kind)
    turned_x, total = block((x, torch.zeros(4, 1, 1, dtype=torch.float64)))
    assert turned_x.shape == (4, 2)
    assert total.shape == (4, 1, 1)
    w = block.field.inside.w.item()
    torch.testing.assert_close(turned_x, turned(x, w), rtol=1e-6, atol=1e-6)
    # The integral of the state is the state turned back by a quarter, over w.
    integral = (turned(x, w - math.pi / 2) - turned(x, -math.pi / 2)) / w
    torch.testing.assert_close(total[:, 0, 0], integral.sum(1), rtol=1e-6, atol=1e-6)
    states = block((x, torch.zeros(4, 1, 1, dtype=torch.float64)), [0.0, 0.5, 1.0])
    assert [tuple(s.shape) for s in states] == [(3, 4, 2), (3, 4, 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_dtype_is_kept(kind: str, dtype: torch.dtype) -> None:
    seen = set()

    class Spy(Rotation):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            seen.add((t.dtype, x.dtype))
            return super().forward(t, x)

    for options in ({}, {"steps": 4}):
        block = ODEBlock(Spy().to(dtype), gradient=kind, options=options)
        x = torch.randn(4, 2, dtype=dtype, requires_grad=True)
        y = block(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == block.field.w.grad.dtype == dtype
    assert seen == {(dtype, dtype)}


def test_any_shape_of_the_state() -> None:
    class Decay(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return -x

    for shape in ((5,), (2, 3), (2, 3, 4, 5), (0, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        y = problems.tight(Decay(), options={} if x.numel() else {"steps": 3})(x)
        torch.testing.assert_close(y, x * math.exp(-1.0), rtol=1e-6, atol=1e-8)


def test_evaluations_are_counted() -> None:
    calls = []

    class Spy(Rotation):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(t, x)

    for kind in GRADIENTS:
        for options in ({}, {"steps": 5}, {"warm_start": True}):
            calls.clear()
            block = ODEBlock(Spy(), gradient=kind, options=options)
            x = torch.randn(4, 2)
            for _ in range(2):
                block(x).sum().backward()
                with torch.no_grad():
                    block(x)
            assert block.nfe_forward + block.nfe_backward == len(calls)
            assert block.nfe_curvature == 0
    block = ODEBlock(Rotation())
    block(x)
    assert block.nfe_forward % 6 == 2


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_warm_start_saves_evaluations_within_tolerance(kind: str) -> None:
    torch.manual_seed(0)
    field, x = Wide().double(), torch.randn(16, 8, dtype=torch.float64)
    cold = ODEBlock(field, rtol=1e-3, atol=1e-3, gradient=kind)
    warm = ODEBlock(field, rtol=1e-3, atol=1e-3, gradient=kind, options={"warm_start": True})
    exact = problems.flow(field, x, (0.0, 1.0))

    def total(block: ODEBlock) -> int:
        before = block.nfe_forward + block.nfe_backward
        block(x).square().sum().backward()
        return block.nfe_forward + block.nfe_backward - before

    assert total(warm) == total(cold)  # nothing to start from yet
    assert total(warm) <= 0.75 * total(cold)
    assert (warm(x) - exact).abs().max().item() < 10e-3
    times = torch.linspace(0, 1, 6)
    for _ in range(2):
        before = warm.nfe_forward, cold.nfe_forward
        states, plain = warm(x, times), cold(x, times)
        spent = warm.nfe_forward - before[0], cold.nfe_forward - before[1]
    torch.testing.assert_close(states, plain, rtol=1e-2, atol=1e-2)
    assert spent[0] <= spent[1]


def test_a_warm_start_that_is_far_too_long_is_safe() -> None:
    torch.manual_seed(0)
    field, x = Wide().double(), torch.randn(16, 8, dtype=torch.float64)
    block = ODEBlock(field, rtol=1e-6, atol=1e-6, options={"warm_start": True})
    state = block.solver_state()
    block.load_solver_state({**state, "longest": {"forward": 1e3, "backward": 1e3}})
    exact = problems.flow(field, x, (0.0, 1.0))
    torch.testing.assert_close(block(x), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_solver_state_makes_a_warm_start_repeatable(kind: str) -> None:
    torch.manual_seed(0)
    options = {"warm_start": True}
    one = nn.Sequential(nn.Linear(8, 8), ODEBlock(Wide(), gradient=kind, options=options))
    x = torch.randn(16, 8)
    for _ in range(3):
        one(x).square().sum().backward()
    two = nn.Sequential(nn.Linear(8, 8), ODEBlock(Wide(), gradient=kind, options=options))
    two.load_state_dict(one.state_dict())
    load_solver_state(two, solver_state(one))
    assert solver_state(one) == solver_state(two)
    results = []
    for model in (one, two):
        model.zero_grad()
        model(x).square().sum().backward()
        results.append(problems.gradients(model))
    assert torch.equal(*results)
    assert solver_state(one) == solver_state(two)


def test_evaluation_does_not_change_the_next_training_step() -> None:
    torch.manual_seed(0)
    field, x = Wide(), torch.randn(16, 8)
    ends = []
    for evaluates in (False, True):
        block = ODEBlock(field, options={"warm_start": True})
        block(x).sum().backward()
        if evaluates:
            block.eval()
            with torch.no_grad():
                block(30 * x)
            block.train()
        ends.append(block(x))
    assert torch.equal(*ends)


def test_state_dict_holds_the_field_and_nothing_else() -> None:
    block = ODEBlock(Wide(), options={"warm_start": True})
    block(torch.randn(4, 8)).sum().backward()
    assert set(block.state_dict()) == {f"field.{name}" for name in block.field.state_dict()}
    for buffer in block.buffers():
        pytest.fail(f"unexpected buffer {buffer}")


@pytest.mark.parametrize("kind", GRADIENTS)
def test_pickle_and_deepcopy(kind: str) -> None:
    block = ODEBlock(Wide(), (0.0, 2.0), gradient=kind, options={"steps": 3, "max_steps": 50})
    x = torch.randn(4, 8)
    y = block(x)
    counted = block.nfe_forward
    stream = io.BytesIO()
    torch.save(block, stream)
    stream.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(block)),
        copy.deepcopy(block),
        torch.load(stream, weights_only=False),
    ):
        assert twin.nfe_forward == counted
        assert torch.equal(twin(x), y)
        assert twin.solver == block.solver
        twin(x).sum().backward()


def test_t_span_can_be_changed() -> None:
    block = problems.tight(Rotation().double())
    x = torch.randn(4, 2, dtype=torch.float64)
    block.t_span = (0.0, 0.4)
    torch.testing.assert_close(block(x), turned(x, 0.4 * block.field.w.item()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dopri6"}, r"method='dopri6'.*dopri5"),
        ({"gradient": "exact"}, r"gradient='exact'.*adjoint-seminorm"),
        ({"rtol": -1.0}, r"rtol=-1\.0.*>= 0"),
        ({"atol": math.nan}, r"atol=nan"),
        ({"t_span": (1.0, 1.0)}, r"t_span.*different"),
        ({"t_span": (0.0, math.inf)}, r"t_span.*finite"),
        ({"options": {"steps": 0}}, r"steps=0.*>= 1"),
        ({"options": {"steps": 2.5}}, r"steps=2\.5.*whole"),
        ({"options": {"max_steps": -3}}, r"max_steps=-3"),
        ({"options": {"steps": 3}, "method": "dopri8"}, r"steps=3.*dopri8.*rk4"),
        ({"gradient": "checkpoint", "method": "dopri8"}, r"checkpoint.*dopri8.*rk4"),
        ({"options": {"on_failure": "ignore"}}, r"on_failure='ignore'.*partial"),
        ({"options": {"compile": True}}, r"compile.*steps"),
        ({"options": {"max_stepz": 3}}, r"max_stepz.*max_steps"),
        ({"options": {"step_size": 0.1}}, r"step_size.*dopri5"),
    ],
)
def test_wrong_arguments_name_value_and_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ODEBlock(Rotation(), **arguments)


def test_wrong_calls() -> None:
    with pytest.raises(TypeError, match="Module"):
        ODEBlock(lambda t, x: x)  # type: ignore[arg-type]
    block, x = ODEBlock(Rotation()), torch.randn(4, 2)
    with pytest.raises(TypeError, match="floating"):
        block(torch.zeros(4, 2, dtype=torch.long))
    for times in ([0.0], [0.0, 1.0, 0.5], [[0.0, 1.0]], [0.0, 0.0]):
        with pytest.raises(ValueError, match=r"t must"):
            block(x, times)
    with pytest.raises(ValueError, match="detach"):
        block(x, torch.tensor([0.0, 1.0], requires_grad=True))
    with pytest.raises(KeyError, match="blocks"):
        load_solver_state(nn.Sequential(block), {})


def test_representation_says_how_it_solves() -> None:
    assert "dopri5" in repr(ODEBlock(Rotation()))
    assert "steps=3" in repr(ODEBlock(Rotation(), method="rk4", options={"steps": 3}))
