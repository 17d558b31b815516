"""Whatever makes rows something else than gradients of samples' losses: handled, or named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.dense import dense_step, same, stepping

N, CLASSES = 6, 4


class Net(nn.Module):
    """Two layers, and how the hidden values h of the first become those of the second."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)
        self.between = between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.between(self, torch.tanh(self.first(x))))
        return logits


def plain(net: Net, h: Tensor) -> Tensor:
    return h


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 3, dtype=torch.float64), torch.randint(CLASSES, (N,))


def reference(model: nn.Module, x: Tensor, y: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    return dense_step(
        model,
        len(x),
        lambda k: functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1]),
        factor,
    )


def backward(model: nn.Module, optimizer: SNOpt, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    logits = model(x)
    optimizer.curvature_pass(logits)
    functional.cross_entropy(logits, y).backward()


def energy_step(net: Net, h: Tensor) -> Tensor:
    h = h if h.requires_grad else h.requires_grad_()
    (slope,) = torch.autograd.grad(torch.tanh(net.first(h)).sum(), h, create_graph=True)
    return h + slope


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, 2 * self.weight, self.bias)


class Field(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


def adjoint(net: Net, h: Tensor) -> Tensor:
    end: Tensor = odeint_adjoint(
        Field(net.first), h, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.5}
    )[-1]
    return end


UNEQUAL: dict[str, tuple[Callable[[Net, Tensor], Tensor], str]] = {
    "a weight used by a function": (
        lambda net, h: functional.linear(h, net.first.weight),
        "F.linear",
    ),
    "a weight in a product": (lambda net, h: h @ net.first.weight, "F.linear"),
    "inner derivatives": (energy_step, "differentiated inside the model"),
    "an adjoint outside of blocks": (adjoint, "odeint_adjoint"),
}


@pytest.mark.parametrize("kind", UNEQUAL)
def test_other_contributions_are_named(kind: str) -> None:
    between, words = UNEQUAL[kind]
    model, (x, y) = Net(between), data()
    twin = Net(between)
    optimizer = stepping(model)
    backward(model, optimizer, x, y)
    functional.cross_entropy(twin(x), y).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=rf"layer 'first'.*{words}"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_layer_with_its_own_forward_is_named() -> None:
    model = Net(plain)
    model.first = Doubled(3, 3).double()
    optimizer = stepping(model)
    backward(model, optimizer, *data())
    with pytest.raises(ValueError, match=r"layer 'first'.*a forward of its own"):
        optimizer.step()


def test_a_parametrization_that_comes_later_is_named() -> None:
    model = Net(plain)
    optimizer = stepping(model)
    parametrizations.weight_norm(model.first)
    backward(model, optimizer, *data())
    with pytest.raises(ValueError, match="layer 'first' was called with another weight"):
        optimizer.step()


def penalty(model: nn.Module) -> Tensor:
    return 0.01 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("begin", [0, 5])
def test_penalties_are_named_in_the_step_they_begin(begin: int) -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(begin):
        backward(model, optimizer, x, y)
        optimizer.step()
    optimizer.zero_grad()
    logits = model(x)
    optimizer.curvature_pass(logits)
    (functional.cross_entropy(logits, y) + penalty(model)).backward()
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.step()


@pytest.mark.parametrize("begin", [0, 5])
def test_clipping_by_one_factor_scales_the_gradient(begin: int) -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(begin):
        backward(model, optimizer, x, y)
        optimizer.step()
    backward(model, optimizer, x, y)
    norm = float(clip_grad_norm_(model.parameters(), 1e-6))
    expected = reference(model, x, y, 1e-6 / (norm + 1e-6))
    optimizer.step()
    same(model, expected)


CHANGES: dict[str, Callable[[Net], object]] = {
    "values clipped": lambda model: clip_grad_value_(model.parameters(), 1e-3),
    "noise": lambda model: [p.grad.add_(torch.randn_like(p)) for p in model.parameters()],
    "one layer scaled": lambda model: model.head.weight.grad.mul_(0.5),
    "set": lambda model: setattr(model.head.weight, "grad", torch.ones_like(model.head.weight)),
    "reversed": lambda model: [p.grad.neg_() for p in model.parameters()],
}


@pytest.mark.parametrize("begin", [0, 5])
@pytest.mark.parametrize("kind", CHANGES)
def test_changed_gradients_are_named(kind: str, begin: int) -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(begin):
        backward(model, optimizer, x, y)
        optimizer.step()
    backward(model, optimizer, x, y)
    CHANGES[kind](model)
    with pytest.raises(ValueError, match=r"changed between backward\(\) and step\(\)"):
        optimizer.step()


def test_gradients_left_of_an_earlier_pass_are_named() -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(4):
        backward(model, optimizer, x, y)
        optimizer.step()
    logits = model(x)
    optimizer.curvature_pass(logits)
    functional.cross_entropy(logits, y).backward()
    with pytest.raises(ValueError, match=r"zero_grad\(\)"):
        optimizer.step()


def test_a_hook_that_changes_the_gradient_is_named() -> None:
    model, (x, y) = Net(plain), data()
    model.head.weight.register_hook(lambda g: 2 * g)
    optimizer = stepping(model)
    backward(model, optimizer, x, y)
    with pytest.raises(ValueError, match="layer 'head'"):
        optimizer.step()


COUPLED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "batch normalization": lambda net, h: functional.batch_norm(h, None, None, training=True),
    "attention over the batch": lambda net, h: torch.softmax(h @ h.T, dim=1) @ h,
}


@pytest.mark.parametrize("kind", COUPLED)
def test_samples_that_act_on_one_another_are_refused(kind: str) -> None:
    model = Net(COUPLED[kind])
    optimizer = stepping(model)
    backward(model, optimizer, *data())
    with pytest.raises(ValueError, match="does not keep the samples apart"):
        optimizer.step()


def test_a_loss_beside_the_outputs_is_refused() -> None:
    hidden: list[Tensor] = []
    model, (x, y) = Net(lambda net, h: hidden.append(h) or h), data()
    optimizer = stepping(model)
    logits = model(x)
    optimizer.curvature_pass(logits)
    (functional.cross_entropy(logits, y) + hidden[-1].abs().mean()).backward()
    with pytest.raises(ValueError, match=r"not the sum|keep the samples apart"):
        optimizer.step()


@pytest.mark.parametrize("steps", [0, 4])
def test_inner_derivatives_that_begin_late_are_refused_at_once(steps: int) -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(steps):
        backward(model, optimizer, x, y)
        optimizer.step()
    model.between = energy_step
    if steps:
        with pytest.raises(RuntimeError, match=r"torch.autograd.grad"):
            backward(model, optimizer, x, y)
        return
    backward(model, optimizer, x, y)
    with pytest.raises(ValueError, match="inside the model"):
        optimizer.step()


def test_derivatives_by_the_inputs_do_not_count() -> None:
    """An adversarial example in every step, which is no part of the loss' pass."""
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    for _ in range(5):
        optimizer.zero_grad()
        start = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(functional.cross_entropy(model(start), y), start)
        moved = x + 0.01 * slope.sign()
        expected = reference(model, moved, y)
        logits = model(moved)
        optimizer.curvature_pass(logits)
        functional.cross_entropy(logits, y).backward()
        optimizer.step()
        same(model, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_torchs_checkpoints(reentrant: bool) -> None:
    def repeated(net: Net, h: Tensor) -> Tensor:
        found: Tensor = checkpoint(lambda z: torch.tanh(net.first(z)), h, use_reentrant=reentrant)
        return found

    model, (x, y) = Net(repeated), data()
    optimizer = stepping(model)
    for _ in range(5):
        twin = Net(lambda net, h: torch.tanh(net.first(h)))
        twin.load_state_dict(model.state_dict())
        expected = reference(twin, x, y)
        backward(model, optimizer, x, y)
        optimizer.step()
        same(model, expected)


def test_gradients_by_hand_of_the_same_pass() -> None:
    model, (x, y) = Net(plain), data()
    optimizer = stepping(model)
    expected = reference(model, x, y)
    logits = model(x)
    optimizer.curvature_pass(logits)
    parameters = list(model.parameters())
    found = torch.autograd.grad(functional.cross_entropy(logits, y), parameters)
    for p, g in zip(parameters, found, strict=True):
        p.grad = g
    optimizer.step()
    same(model, expected)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_one_samples_pass_is_not_counted(gradient: str) -> None:
    block = ODEBlock(problems.field(), method="rk4", gradient=gradient, options={"steps": 2})
    model = nn.Sequential(block, nn.Linear(3, CLASSES).double())
    optimizer = stepping(model)
    backward(model, optimizer, *data())
    assert block.nfe_backward == (8 if gradient == "checkpoint" else 0)


def test_calls_by_keyword() -> None:
    model, (x, y) = Net(lambda net, h: torch.tanh(net.first(input=h))), data()
    optimizer = stepping(model)
    for _ in range(5):
        expected = reference(model, x, y)
        backward(model, optimizer, x, y)
        optimizer.step()
        same(model, expected)


# -- which dimension is the sample -----------------------------------------------------------------


def flattened(net: Net, h: Tensor) -> Tensor:
    return torch.tanh(net.first(h.flatten(0, 1))).unflatten(0, h.shape[:2])


@pytest.mark.parametrize("times", [4, N])
@pytest.mark.parametrize("between", [plain, flattened])
def test_outputs_with_time_first(between: Callable[[Net, Tensor], Tensor], times: int) -> None:
    model = Net(between)
    x = torch.randn(times, N, 3, dtype=torch.float64)
    y = torch.randn(times, N, CLASSES, dtype=torch.float64)
    optimizer = stepping(model)
    for _ in range(5):
        expected = dense_step(
            model, N, lambda k: functional.mse_loss(model(x[:, k : k + 1]), y[:, k : k + 1])
        )
        optimizer.zero_grad()
        outputs = model(x)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, batch_dim=1)
        functional.mse_loss(outputs, y).backward()
        optimizer.step()
        same(model, expected)


def test_layers_with_time_first_before_outputs_with_samples_first() -> None:
    class Read(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.first(x)).sum(dim=0))
            return logits

    model, y = Read(plain), torch.randint(CLASSES, (N,))
    x = torch.randn(4, N, 3, dtype=torch.float64)
    expected = dense_step(
        model, N, lambda k: functional.cross_entropy(model(x[:, k : k + 1]), y[k : k + 1])
    )
    optimizer = stepping(model)
    backward(model, optimizer, x, y)
    optimizer.step()
    same(model, expected)


def test_a_square_of_times_and_samples_is_refused() -> None:
    class Read(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.first(x)).sum(dim=0))
            return logits

    model, y = Read(plain), torch.randint(CLASSES, (N,))
    optimizer = stepping(model)
    backward(model, optimizer, torch.randn(N, N, 3, dtype=torch.float64), y)
    with pytest.raises(ValueError, match="batch_dim=1"):
        optimizer.step()


def test_inputs_that_fit_no_reading_are_refused() -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x[: N - 1]))
            logits: Tensor = self.head(torch.cat([h, h[:1]]))
            return logits

    model = Odd(plain)
    optimizer = stepping(model)
    with pytest.raises(ValueError, match="layer 'first' saw inputs whose first dimension is 5"):
        backward(model, optimizer, *data())


@pytest.mark.parametrize("batch_dim", [2, -3])
def test_a_dimension_that_is_not_there_is_refused(batch_dim: int) -> None:
    model, (x, _) = Net(plain), data()
    optimizer = stepping(model)
    with pytest.raises(ValueError, match=f"batch_dim={batch_dim}"):
        optimizer.curvature_pass(model(x), batch_dim=batch_dim)
