"""Saving and copying: training goes on bit for bit, and copies of a model are not watched."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import LevenbergMarquardt, ODEBlock, SNOpt, load_solver_state, solver_state
from tests.support import problems
from tests.support.training import flat

X, Y = (part.float() for part in problems.batch())


class Mixed(nn.Module):
    """Layers of several kinds around a block, with plain parameters too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Linear(5, 3), nn.LayerNorm(3)
        self.block = ODEBlock(problems.field().float(), options={"warm_start": True})
        self.conv, self.head = nn.Conv1d(1, 2, 2, groups=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.norm(self.stem(x)))
        return self.head(self.conv(h.unsqueeze(1)).flatten(1))


def train(model: nn.Module, optimizer: SNOpt, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(X)
        optimizer.curvature_pass(outputs, "gaussian")
        problems.squares(Y)(outputs).backward()
        optimizer.step()


def _words(settings: dict[str, Any]) -> str:
    """A name that is the same in every process, as that of a function is not."""
    values = ("schedule" if callable(value) else value for value in settings.values())
    return ",".join(map("{}={}".format, settings, values))


SETTINGS: list[dict[str, Any]] = [
    {"rule": rule, "basis": basis}
    for rule in ("paper", "adam", "kfac")
    for basis in ("curvature", "gradient", "both")
] + [
    {"momentum": 0.9, "carry_over": True, "fallback": "adam"},
    {"stagger": True},
    {"curvature": "fisher"},
    {"damping": lambda step: 0.1 / (1 + step)},
    {"sampling": "grid", "grid_points": 5},
]


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("settings", SETTINGS, ids=_words)
def test_training_continues_bit_for_bit(settings: dict[str, Any], at: int) -> None:
    """Saved at any place in the refresh period, loaded into a freshly built model."""
    settings = {"refresh_every": 4, **settings}
    one = Mixed()
    optimizer = SNOpt(one, 0.02, **{"rule": "paper", **settings})
    train(one, optimizer, at)
    stream = io.BytesIO()
    torch.save((one.state_dict(), optimizer.state_dict(), solver_state(one)), stream)
    train(one, optimizer, 6)
    stream.seek(0)
    parameters, state, solves = torch.load(stream, weights_only=True)
    two = Mixed()
    fresh = SNOpt(two, 0.5, **{"rule": "paper", **settings})
    two.load_state_dict(parameters)
    fresh.load_state_dict(state)
    load_solver_state(two, solves)
    train(two, fresh, 6)
    assert torch.equal(flat(one), flat(two))
    for name, pair in optimizer.factors().items():
        for got, want in zip(fresh.factors()[name], pair, strict=True):
            assert torch.equal(got, want)
    left, right = optimizer.diagnostics(), fresh.diagnostics()
    assert left == right


class Spectral(nn.Module):
    """A complex parameter behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Linear(5, 2)
        self.modes = nn.Parameter(torch.randn(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.stem(x)) * self.modes, n=2)


@pytest.mark.parametrize("rule", ["adam", "paper", "kfac"])
@pytest.mark.parametrize("fallback", ["rule", "adam"])
def test_training_continues_with_complex_parameters(rule: str, fallback: str) -> None:
    one, two = Spectral(), Spectral()
    optimizer = SNOpt(one, 0.02, rule=rule, fallback=fallback)
    train(one, optimizer, 3)
    saved = copy.deepcopy((one.state_dict(), optimizer.state_dict()))
    train(one, optimizer, 3)
    two.load_state_dict(saved[0])
    fresh = SNOpt(two, 0.02, rule=rule, fallback=fallback)
    fresh.load_state_dict(saved[1])
    train(two, fresh, 3)
    assert torch.equal(two.modes, one.modes)
    assert torch.equal(two.stem.weight, one.stem.weight)


@pytest.mark.parametrize("at", [1, 2])
def test_training_continues_with_a_state_of_one_sample(at: int) -> None:
    """What was learned of a state without samples is known between refreshes, too."""

    def run(block: ODEBlock, optimizer: SNOpt, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (block(X[0, :3]) - Y[0, 0]).square().sum().backward()
            optimizer.step()

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.inner = nn.Linear(3, 3)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.inner(x))

    blocks = [ODEBlock(Alone(), gradient="direct") for _ in range(2)]
    one, two = ((block, SNOpt(block, 0.02, rule="paper", refresh_every=4)) for block in blocks)
    run(*one, at)
    two[0].load_state_dict(one[0].state_dict())
    two[1].load_state_dict(copy.deepcopy(one[1].state_dict()))
    run(*one, 2)
    run(*two, 2)
    assert torch.equal(flat(one[0]), flat(two[0]))


def test_a_state_can_be_loaded_twice() -> None:
    """What was loaded is not trained on in place."""
    for rule in ("paper", "adam"):
        one = Mixed()
        optimizer = SNOpt(one, 0.02, rule=rule, refresh_every=4, fallback="adam")
        train(one, optimizer, 3)
        state = copy.deepcopy((one.state_dict(), optimizer.state_dict(), solver_state(one)))
        ends = []
        for _ in range(2):
            model = Mixed()
            fresh = SNOpt(model, 0.02, rule=rule, refresh_every=4, fallback="adam")
            model.load_state_dict(state[0])
            fresh.load_state_dict(state[1])
            load_solver_state(model, state[2])
            train(model, fresh, 3)
            ends.append(flat(model))
        assert torch.equal(*ends)


def test_state_is_keyed_by_names() -> None:
    model = Mixed()
    optimizer = SNOpt(model, 0.02, rule="paper", momentum=0.9)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    names = {n for n, _ in model.named_parameters()}
    assert set(state["state"]) == names
    assert {n for g in state["param_groups"] for n in g["params"]} == names
    assert "block.field.inner" in state["preconditioner"]["layers"]


def test_learning_rates_and_damping_come_back() -> None:
    model = Mixed()
    controller = LevenbergMarquardt(0.3)
    optimizer = SNOpt(model, 0.02, rule="paper", damping=controller)
    controller.value = 0.7
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    problems.squares(Y)(model(X)).backward()
    state = optimizer.state_dict()
    other = LevenbergMarquardt(0.3)
    fresh = SNOpt(Mixed(), 0.5, rule="paper", damping=other)
    fresh.load_state_dict(state)
    assert other.value == 0.7
    assert fresh.param_groups[0]["lr"] == 0.02
    assert scheduler.get_last_lr() == [0.02]


def test_a_state_of_another_model_is_refused() -> None:
    optimizer = SNOpt(Mixed(), 0.02, rule="paper")
    with pytest.raises(ValueError, match="other parameters"):
        optimizer.load_state_dict(SNOpt(nn.Linear(2, 2), rule="paper").state_dict())
    with pytest.raises(ValueError, match="layers"):
        optimizer.load_state_dict(SNOpt(Mixed(), rule="paper", precondition="ode").state_dict())


@pytest.mark.parametrize("trained", [False, True])
def test_models_are_copied_and_pickled_while_they_are_watched(trained: bool) -> None:
    """Right after the optimizer was made, and in the middle of a refresh step."""
    model = Mixed()
    optimizer = SNOpt(model, 0.02, rule="paper", refresh_every=2)
    if trained:
        problems.squares(Y)(model(X)).backward()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    twins = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
    ]
    capture = optimizer.method.capture
    before = {name: sums.samples for name, sums in capture.sums.items()}
    for twin in twins:
        problems.squares(Y)(twin(X)).backward()
        problems.squares(Y)(twin(X)).backward()
        assert twin.block.nfe_curvature == model.block.nfe_curvature  # nobody watches the copy
        own = SNOpt(twin, 0.02, rule="paper")
        train(twin, own, 2)
    assert {name: sums.samples for name, sums in capture.sums.items()} == before
    train(model, optimizer, 3)


def test_a_copy_does_not_carry_the_optimizer_along() -> None:
    model = Mixed()
    with SNOpt(model, 0.02, rule="paper"):
        assert b"Capture" not in pickle.dumps(model)


def test_a_second_optimizer_does_not_disturb_the_first() -> None:
    model, plain = Mixed(), Mixed()
    first = SNOpt(model, 0.02, rule="paper", refresh_every=2)
    train(model, first, 3)
    train(plain, SNOpt(plain, 0.02, rule="paper", refresh_every=2), 3)
    assert torch.equal(flat(model), flat(plain))


def test_the_optimizer_itself_says_how_to_copy_it() -> None:
    optimizer = SNOpt(Mixed(), 0.02, rule="paper")
    for copies in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            copies(optimizer)
