"""SNOpt on CUDA: the steps of the CPU for every rule and layer, moved models, states, precision."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional

from snopt import (
    GaussNewton,
    Horizon,
    LevenbergMarquardt,
    ODEBlock,
    SNOpt,
    SNOptPreconditioner,
    kronecker_error,
)
from tests.support import problems
from tests.support.classifiers import Classifier, Pictures, pictures, series
from tests.support.devices import DEVICE, ONLY_CUDA, devices, exact_convolutions, same, weights
from tests.support.problems import GRADIENTS

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}

Data = tuple[Tensor, Tensor]


def solved(gradient: str = "direct", **options: Any) -> nn.Module:
    """A block between linear layers, (N, 5) to (N, 2)."""
    settings = {"method": "rk4", "options": {"steps": 3}, **options}
    return problems.model(ODEBlock(problems.field(), gradient=gradient, **settings))


def convolved(*layers: nn.Module) -> nn.Sequential:
    """Layers between the pictures and four classes."""
    mean = nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(*layers, nn.Flatten(2), mean, nn.Flatten(), nn.Linear(4, 4)).double()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped and strided": Pictures,
    "recurrent": Classifier,
    "transposed": lambda: convolved(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Tanh()),
    "norms": lambda: convolved(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.GroupNorm(2, 4)
    ),
    "line": lambda: convolved(nn.Flatten(2), nn.Conv1d(2, 4, 5, padding=2), nn.Tanh()),
    "volume": lambda: convolved(nn.Unflatten(2, (2, 3)), nn.Conv3d(2, 4, 2, padding=1), nn.Tanh()),
}
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "curvature": {"basis": "curvature", "refresh_every": 1},
    "both": {"basis": "both"},
    "options": {"nesterov": True, "normalize": 0.5, "cautious": False, "weight_decay": 0.01},
    "ggn": {"rule": "paper", "curvature": "ggn"},
    "paper": {"rule": "paper"},
    "grid": {"rule": "paper", "sampling": "grid", "momentum": 0.9},
    "kfac": {"rule": "kfac", "refresh_every": 2},
    "bounded": {"rule": "kfac", "kl_clip": 1e-3, "trust": 0.1},
    "fallback": {"rule": "paper", "fallback": "adam", "precondition": "ode"},
    "samples": {"rule": "gauss_newton", "damping": 1.0},
    "outputs": {"rule": "gauss_newton", "rows": "outputs", "damping": 1.0},
    "products": {"rule": "gauss_newton", "rows": "outputs", "damping": 1.0, "memory": 0.0},
}
SOLVES = [
    (rule, gradient)
    for rule in RULES
    for gradient in GRADIENTS
    if not (rule == "samples" and gradient.startswith("adjoint"))
    and not (rule == "products" and gradient != "direct")
]


def trained(
    make: Callable[[], nn.Module],
    data: Data,
    likelihood: str,
    device: str,
    dtype: torch.dtype,
    steps: int = 3,
    **settings: Any,
) -> Tensor:
    """The weights after some steps."""
    torch.manual_seed(6)
    model = make().to(device, dtype)
    x, y = (z.to(device, dtype if z.is_floating_point() else None) for z in data)
    optimizer = SNOpt(model, **settings)
    for _ in range(steps):
        fit(model, optimizer, x, y, likelihood)
    assert all(p.device.type == device for p in model.parameters())
    return weights(model)


def fit(
    model: nn.Module, optimizer: SNOpt, x: Tensor, y: Tensor, likelihood: str = "gaussian"
) -> Tensor:
    optimizer.zero_grad()
    outputs = model(x)
    loss = (functional.cross_entropy if likelihood == "categorical" else functional.mse_loss)(
        outputs, y
    )
    if optimizer.method.needs_curvature_pass:
        optimizer.curvature_pass(outputs, likelihood, targets=y, loss=loss)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rule", "gradient"), SOLVES)
def test_steps_of_every_rule_and_gradient(rule: str, gradient: str, dtype: torch.dtype) -> None:
    found, wanted = (
        trained(
            lambda: solved(gradient),
            problems.batch(12),
            "gaussian",
            device,
            dtype,
            lr=1e-3,
            **RULES[rule],
        )
        for device in (DEVICE, "cpu")
    )
    same(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (kind, rule)
        for kind in LAYERS
        for rule in ("default", "curvature", "ggn", "paper", "kfac", "samples", "outputs")
        if (kind, rule) != ("norms", "samples")  # samples act on one another in a batch's norm
    ],
)
def test_steps_of_every_layer(
    kind: str, rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_convolutions(monkeypatch)
    data = series(8) if kind == "recurrent" else pictures(8)
    found, wanted = (
        trained(LAYERS[kind], data, "categorical", device, dtype, lr=1e-3, **RULES[rule])
        for device in (DEVICE, "cpu")
    )
    same(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("rule", ["adam", "paper"])
def test_curvature_that_is_drawn(rule: str) -> None:
    """Devices draw other numbers, and the same ones again."""
    settings = {"rule": rule, "curvature": "fisher", "basis": "curvature"}
    for data, make in ((series(), Classifier), (problems.batch(), solved)):
        likelihood = "categorical" if make is Classifier else "gaussian"
        one, other = (
            trained(make, data, likelihood, DEVICE, torch.float64, **settings) for _ in range(2)
        )
        same(one, other, 1e-9)


class Plain(nn.Module):
    """A user's model: plain torchdiffeq, nothing of ours."""

    def __init__(self, solve: Callable[..., Tensor]) -> None:
        super().__init__()
        self.field, self.head, self.solve = problems.field(), nn.Linear(3, 3), solve

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        states = self.solve(self.field, x, times, method="rk4", options={"step_size": 0.25})
        return self.head(states[-1])


@pytest.mark.parametrize("solve", [torchdiffeq.odeint_adjoint, torchdiffeq.odeint])
def test_a_model_of_torchdiffeq_itself(solve: Callable[..., Tensor]) -> None:
    found, wanted = (
        trained(lambda: Plain(solve), problems.data(), "gaussian", device, torch.float64)
        for device in (DEVICE, "cpu")
    )
    same(found, wanted, 1e-9)


@pytest.mark.parametrize("when", ["built", "trained"])
@pytest.mark.parametrize("rule", ["default", "both", "paper", "kfac", "samples", "outputs"])
def test_a_model_that_is_moved_takes_its_optimizer_along(rule: str, when: str) -> None:
    data = problems.batch()
    there = [z.to(DEVICE) for z in data]
    moved, kept = solved(), solved()
    optimizers = [SNOpt(m, 1e-3, **RULES[rule]) for m in (moved, kept)]
    for model, optimizer in zip((moved, kept), optimizers, strict=True):
        for _ in range(0 if when == "built" else 3):
            fit(model, optimizer, *data)
    moved.to(DEVICE)
    for _ in range(3):
        fit(moved, optimizers[0], *there)
        fit(kept, optimizers[1], *data)
    same(weights(moved), weights(kept), 1e-9)
    assert devices(optimizers[0].state_dict()) <= {DEVICE}
    moved.cpu()
    for model, optimizer in zip((moved, kept), optimizers, strict=True):
        fit(model, optimizer, *data)
    same(weights(moved), weights(kept), 1e-9)


@pytest.mark.parametrize("here", ["saved there", "saved here"])
@pytest.mark.parametrize("mapped", [None, "cpu", DEVICE])
@pytest.mark.parametrize("rule", RULES)
def test_a_saved_state_goes_on_on_another_device(rule: str, mapped: str | None, here: str) -> None:
    data = problems.batch()
    first, second = (DEVICE, "cpu") if here == "saved there" else ("cpu", DEVICE)
    model = solved().to(first)
    optimizer = SNOpt(model, 1e-3, **RULES[rule])
    for _ in range(3):
        fit(model, optimizer, *(z.to(first) for z in data))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, map_location=mapped, weights_only=True)
    other = solved().to(second)
    restored = SNOpt(other, 1e-3, **RULES[rule])
    other.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    assert devices(restored.state_dict()) <= {second}
    for net, it, device in ((model, optimizer, first), (other, restored, second)):
        for _ in range(3):
            fit(net, it, *(z.to(device) for z in data))
    same(weights(other), weights(model), 1e-9)


@pytest.mark.parametrize("rule", ["adam", "paper"])
def test_averages_come_and_go(rule: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        model = solved().to(device)
        optimizer = SNOpt(model, 1e-2, rule=rule, averaging=3.0)
        for _ in range(4):
            fit(model, optimizer, *(z.to(device) for z in problems.batch()))
        trained_weights = weights(model)
        optimizer.eval()
        found.append(weights(model))
        optimizer.train()
        assert torch.equal(weights(model), trained_weights)
        assert not torch.equal(found[-1], trained_weights)
    same(*found, 1e-9)


def test_averages_wait_while_the_model_moves() -> None:
    model = solved()
    optimizer = SNOpt(model, 1e-2, averaging=3.0)
    fit(model, optimizer, *problems.batch())
    before = weights(model)
    model.to(DEVICE)
    optimizer.eval()  # averages of weights that somebody else has written to begin again
    optimizer.train()
    assert torch.equal(weights(model), before)
    fit(model, optimizer, *(z.to(DEVICE) for z in problems.batch()))


@pytest.mark.parametrize("told", [True, False])
def test_levenberg_marquardt_and_backtracking(told: bool) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double().to(device)
        x = torch.linspace(-2, 2, 12, dtype=torch.float64, device=device).unsqueeze(1)
        y = torch.sin(2 * x)
        damping = LevenbergMarquardt(0.1, decay=0.5, every=1, floor=1e-12) if told else 0.1
        optimizer = GaussNewton(model, 0.5, damping=damping, backtrack=1e-3)

        def closure(
            m: nn.Module = model, o: SNOpt = optimizer, x: Tensor = x, y: Tensor = y
        ) -> Tensor:
            o.zero_grad()
            outputs = m(x)
            loss = functional.mse_loss(outputs, y)
            o.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
        found.append(weights(model))
    same(*found, 1e-7)


@pytest.mark.parametrize("name", ["kfac", "adam"])
def test_a_preconditioner_before_another_optimizer(name: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        model = solved("adjoint").to(device)
        x, y = (z.to(device) for z in problems.batch())
        preconditioner = SNOptPreconditioner(model, rule=name)
        sgd = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
        for _ in range(4):
            sgd.zero_grad()
            functional.mse_loss(model(x), y).backward()
            preconditioner.step()
            sgd.step()
        found.append(weights(model))
    same(*found, 1e-8)


@pytest.mark.parametrize("rule", ["feedback", "first_order"])
def test_the_integration_time_moves_as_on_the_cpu(rule: str) -> None:
    times = []
    for device in (DEVICE, "cpu"):
        model = solved("adjoint").to(device)
        optimizer = SNOpt(model, 1e-2)
        horizon = Horizon(model[1], optimizer, rule, every=2)
        for _ in range(4):
            fit(model, optimizer, *(z.to(device) for z in problems.batch()))
        saved = copy.deepcopy(horizon.state_dict())
        other = solved("adjoint")
        again = SNOpt(other, 1e-2)
        resumed = Horizon(other[1], again, rule, every=2)  # a state of the device, on the CPU
        resumed.load_state_dict(saved)
        for _ in range(2):
            fit(other, again, *problems.batch())
        times.append([horizon.T, resumed.T])
        assert horizon.T != 1.0
    assert times[0] == pytest.approx(times[1], rel=1e-6)


def test_kronecker_errors_are_those_of_the_cpu() -> None:
    found = [
        kronecker_error(
            solved().to(device), tuple(z.to(device) for z in problems.batch(3)), functional.mse_loss
        ).layers
        for device in (DEVICE, "cpu")
    ]
    assert found[0].keys() == found[1].keys()
    for name, error in found[0].items():
        for entry in ("error", "cosine", "scale"):
            assert getattr(error, entry) == pytest.approx(getattr(found[1][name], entry), rel=1e-6)


def test_what_it_tells_of_itself() -> None:
    model = solved().to(DEVICE)
    optimizer = SNOpt(model, rule="paper")
    fit(model, optimizer, *(z.to(DEVICE) for z in problems.batch()))
    assert 0.0 < optimizer.curvature_seconds < 60.0
    assert 0.0 < optimizer.diagnostics()["gradient_norm"] < 100.0
    for name, pair in optimizer.factors().items():
        assert devices(pair) == {DEVICE}, name


@ONLY_CUDA
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("settings", [{}, {"nesterov": True, "weight_decay": 0.1}])
def test_a_step_between_refreshes_does_not_wait_for_the_device(settings: dict[str, Any]) -> None:
    model = solved().to(DEVICE, torch.float32)
    x, y = (z.to(DEVICE, torch.float32) for z in problems.batch())
    optimizer = SNOpt(model, refresh_every=100, **settings)
    fit(model, optimizer, x, y)
    fit(model, optimizer, x, y)
    optimizer.zero_grad()
    functional.mse_loss(model(x), y).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
