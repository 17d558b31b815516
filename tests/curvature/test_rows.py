"""Gradients of single samples, and the layers' own gradients, which are their sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import SNOpt
from tests.support.classifiers import (
    CLASSES,
    Classifier,
    Pictures,
    backward,
    gauss_newton,
    pictures,
    series,
)


class Scaled(nn.Linear):
    """Its own forward pass: the gradient of its weight is not the sum of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, 2.0 * self.weight, self.bias)


class Trained(nn.Module):
    """Layers on inputs that nothing before them trains, changed in place behind; odd shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(2, 4)
        self.scaled = Scaled(4, 4)
        self.shared = nn.Linear(1, 4)
        self.head = nn.Linear(4, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x), inplace=True)  # (N, 3, 2): locations
        h = torch.tanh(self.first(x[:, 0])) + h.mean(dim=1)  # another shape
        h = torch.tanh(self.scaled(h) + self.shared(torch.ones(1, dtype=x.dtype)))
        logits: Tensor = self.head(h)
        return logits


MODELS = {
    "direct": (Classifier, series),
    "checkpoint": (lambda: Classifier("checkpoint", "dopri5"), series),
    "convolutions": (Pictures, pictures),
    "others": (Trained, series),
}


def trained(model: nn.Module) -> SNOpt:
    """An optimizer past its first steps, whose gradients autograd makes too, to be compared."""
    optimizer = gauss_newton(model)
    for seed in range(3):
        backward(model, optimizer, *series(seed=seed))
        optimizer.step()
    return optimizer


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("first", ["zero_grad", "forward"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_is_autograds(kind: str, first: str) -> None:
    build, data = MODELS[kind]
    model = build()
    x, y = data()
    twin = copy.deepcopy(model)
    functional.cross_entropy(twin(x), y).backward()
    optimizer = gauss_newton(model)
    if first == "zero_grad":
        backward(model, optimizer, x, y)
    else:
        outputs = model(x)
        optimizer.zero_grad()
        optimizer.curvature_pass(outputs)
        functional.cross_entropy(outputs, y).backward()
    torch.testing.assert_close(gradients(model), gradients(twin), rtol=1e-12, atol=1e-14)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - {"others"}))
def test_both_orders_give_the_same_step(kind: str) -> None:
    build, data = MODELS[kind]
    x, y = data()
    ends = []
    for zero_first in (True, False):
        model = build()
        optimizer = gauss_newton(model)
        outputs = None if zero_first else model(x)
        optimizer.zero_grad()
        outputs = model(x) if outputs is None else outputs
        optimizer.curvature_pass(outputs)
        functional.cross_entropy(outputs, y).backward()
        optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_autograd_is_spared_the_layers_gradients() -> None:
    """What the saving is: the pass' graph does not lead to the weights, once rows are checked."""
    model = Classifier()
    optimizer = trained(model)
    x, y = series()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    assert not torch.autograd.grad(loss, [model.head.weight], allow_unused=True)[0]


def test_a_backward_pass_of_another_kind_is_refused() -> None:
    model = Classifier()
    optimizer = trained(model)
    x, y = series()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"curvature_pass\(outputs\)"):
        functional.cross_entropy(model(x), y).backward()


def test_after_a_step_the_model_trains_with_any_optimizer() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    x, y = series()
    backward(model, optimizer, x, y)
    optimizer.step()
    twin = copy.deepcopy(model)
    for m in (model, twin):
        sgd = torch.optim.SGD(m.parameters(), 0.1)
        sgd.zero_grad()
        functional.cross_entropy(m(x), y).backward()
        sgd.step()
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_weight_frozen_later_stays_frozen() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    model.head.weight.requires_grad_(False)
    backward(model, optimizer, *series())
    assert not model.head.weight.requires_grad
    assert model.head.weight.grad is None


def test_an_error_in_a_layer_leaves_its_weight_trainable() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(6, 3, 5, dtype=torch.float64))
    assert all(p.requires_grad for p in model.parameters())
    x, y = series()
    backward(model, optimizer, x, y)
    twin = Classifier()
    functional.cross_entropy(twin(x), y).backward()
    torch.testing.assert_close(gradients(model), gradients(twin))


def test_an_input_changed_in_place_is_told() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            logits: Tensor = self.head(x)
            x.mul_(2)
            return logits

    model = Careless().double()
    optimizer = gauss_newton(model)
    x, y = series()
    with pytest.raises(RuntimeError, match="'head' was changed in place"):
        backward(model, optimizer, x[:, 0], y)


def test_batches_of_two_sizes_in_one_pass_are_refused() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    x, y = series()
    optimizer.zero_grad()
    outputs = model(x)
    optimizer.curvature_pass(outputs)
    other = functional.cross_entropy(model(x[:2]), y[:2])
    (functional.cross_entropy(outputs, y) + other).backward()
    with pytest.raises(ValueError, match="another loss"):
        optimizer.step()
