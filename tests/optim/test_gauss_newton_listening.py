"""What Gauss-Newton steps leave alone: frozen parameters, other optimizers, unusual loops."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import ODEBlock, SNOpt
from tests.support.classifiers import Classifier, backward, series
from tests.support.dense import dense_step, same, stepping


def reference(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return dense_step(
        model, len(x), lambda k: functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
    )


def steps(model: nn.Module, optimizer: SNOpt, count: int) -> None:
    for seed in range(count):
        backward(model, optimizer, *series(seed=seed))
        optimizer.step()


FROZEN = {
    "a weight": ["head.weight"],
    "a bias": ["head.bias"],
    "a layer": ["inputs.weight", "inputs.bias"],
    "a field": ["block.field.inner.weight", "block.field.inner.bias", "block.field.outer.weight"],
}


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_stay_and_thawed_ones_move(kind: str, begin: int) -> None:
    model = Classifier()
    optimizer = stepping(model)
    steps(model, optimizer, begin)
    frozen = [model.get_parameter(name) for name in FROZEN[kind]]
    for p in frozen:
        p.requires_grad_(False)
    before = [p.clone() for p in frozen]
    x, y = series()
    expected = reference(model, x, y)
    backward(model, optimizer, x, y)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(frozen, before, strict=True))
    same(model, expected)
    for p in frozen:
        p.requires_grad_(True)
    expected = reference(model, x, y)
    backward(model, optimizer, x, y)
    optimizer.step()
    same(model, expected)


def test_frozen_parameters_stay_with_momentum_and_decay() -> None:
    model = Classifier()
    optimizer = stepping(model, momentum=0.9, weight_decay=0.1)
    steps(model, optimizer, 2)
    model.head.requires_grad_(False)
    model.gate.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 3)
    for name in ("head.weight", "head.bias", "gate.weight"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_what_is_frozen_from_the_start_stays() -> None:
    model = Classifier()
    model.head.bias.requires_grad_(False)
    model.inputs.requires_grad_(False)
    optimizer = stepping(model)
    x, y = series()
    for _ in range(5):
        expected = reference(model, x, y)
        backward(model, optimizer, x, y)
        optimizer.step()
        same(model, expected)


@pytest.mark.parametrize("begin", [0, 4])
def test_parameters_without_a_gradient_do_not_move(begin: int) -> None:
    model = Classifier()
    optimizer = stepping(model, momentum=0.9)
    steps(model, optimizer, begin)
    backward(model, optimizer, *series())
    before = copy.deepcopy(model.state_dict())
    model.head.weight.grad = None
    model.inputs.weight.grad = model.inputs.bias.grad = None
    optimizer.step()
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    stay = {"head.weight", "inputs.weight", "inputs.bias"}
    assert moved == before.keys() - stay


@pytest.mark.parametrize("clear", ["zero_grad", "all gradients taken away", "nothing"])
def test_a_step_without_gradients_changes_nothing(clear: str) -> None:
    model = Classifier()
    optimizer = stepping(model)
    if clear != "nothing":
        backward(model, optimizer, *series())
        optimizer.zero_grad() if clear == "zero_grad" else model.zero_grad()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert optimizer.state_dict() == state
    x, y = series()
    expected = reference(model, x, y)
    backward(model, optimizer, x, y)
    optimizer.step()
    same(model, expected)


def test_forward_passes_of_other_data_change_nothing() -> None:
    model = Classifier()
    optimizer = stepping(model)
    x, y = series()
    for _ in range(5):
        expected = reference(model, x, y)
        model(x[:1])
        optimizer.zero_grad()
        model(x[:2])
        logits = model(x)
        optimizer.curvature_pass(logits)
        model(x[:3])
        functional.cross_entropy(logits, y).backward()
        model(x[:1])
        optimizer.step()
        same(model, expected)


@pytest.mark.parametrize("begin", [0, 4])
def test_eval_mode_is_told(begin: int) -> None:
    model = Classifier()
    optimizer = stepping(model)
    steps(model, optimizer, begin)
    x, y = series()
    model.eval()
    with pytest.raises(RuntimeError, match=r"model.train\(\)"):
        backward(model, optimizer, x, y)
    model.train()
    model.head.eval()
    optimizer.zero_grad()
    backward(model, optimizer, x, y)
    with pytest.raises(ValueError, match=r"layer 'head'.*model.train\(\)"):
        optimizer.step()


def test_a_second_backward_pass_is_told() -> None:
    model = Classifier()
    optimizer = stepping(model)
    x, y = series()
    logits = model(x)
    optimizer.curvature_pass(logits)
    loss = functional.cross_entropy(logits, y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass a step"):
        loss.backward()


def test_a_gradient_with_a_graph_is_refused() -> None:
    model = Classifier()
    optimizer = stepping(model)
    x, y = series()
    logits = model(x)
    optimizer.curvature_pass(logits)
    loss = functional.cross_entropy(logits, y)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, model.head.weight, create_graph=True)


class Scaler:
    """Half of GradScaler: it scales the loss and takes the scale off the gradients."""

    def get_scale(self) -> float:
        return 1024.0


@pytest.mark.parametrize("given", [True, False])
def test_scaled_losses(given: bool) -> None:
    model = Classifier()
    optimizer = SNOpt(
        model,
        0.5,
        rule="gauss_newton",
        momentum=0.0,
        damping=0.03,
        trust=1e9,
        grad_scaler=Scaler() if given else None,
    )
    x, y = series()
    expected = reference(model, x, y)
    if not given:
        with pytest.raises(ValueError, match="grad_scaler=scaler"):
            backward(model, optimizer, x, y, 1024.0)
        return
    backward(model, optimizer, x, y, 1024.0)
    with pytest.raises(ValueError, match="unscale_"):
        optimizer.step()
    backward(model, optimizer, x, y, 1024.0)
    for p in model.parameters():
        p.grad.div_(1024.0)
    optimizer.step()
    same(model, expected)


# -- the end of listening --------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks)
        + (isinstance(m, ODEBlock) and len(m.observers))
        for m in model.modules()
    )  # fmt: skip


RULES = {
    "gauss_newton": {},
    "paper": {},
    "adam": {},
    "kfac": {},
    "adam, gradient basis": {"rule": "adam", "basis": "gradient"},
}


def built(kind: str, model: nn.Module) -> SNOpt:
    return SNOpt(model, 0.1, **{"rule": kind, **RULES[kind]})


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("second", ["gauss_newton", "paper", "sgd"])
@pytest.mark.parametrize("first", RULES)
def test_after_close_a_model_is_as_before(first: str, second: str, begun: bool) -> None:
    model, twin = Classifier(), Classifier()
    with built(first, model) as optimizer:
        if begun:
            optimizer.zero_grad()
            model(series()[0])
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step()
    optimizer.state_dict()
    for m in (model, twin):
        if second == "sgd":
            sgd = torch.optim.SGD(m.parameters(), 0.1)
            functional.cross_entropy(m(series()[0]), series()[1]).backward()
            sgd.step()
        else:
            steps(m, built(second, m), 2)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_an_abandoned_optimizer_falls_silent() -> None:
    model, twin = Classifier(), Classifier()
    optimizer = built("gauss_newton", model)
    optimizer.zero_grad()
    del optimizer
    gc.collect()
    assert hooks(model) == 0
    for m in (model, twin):
        steps(m, built("gauss_newton", m), 5)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_another_optimizer_takes_over_at_once() -> None:
    """As a notebook does: the new one is built before the old one goes, between its steps."""
    model, twin = Classifier(), Classifier()
    old = built("gauss_newton", model)
    steps(model, old, 5)
    steps(twin, built("gauss_newton", twin), 5)
    for m in (model, twin):
        new = built("gauss_newton", m)
        steps(m, new, 5)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_an_optimizer_that_goes_between_the_passes_leaves_no_wrong_gradient() -> None:
    model = Classifier()
    optimizer = stepping(model)
    steps(model, optimizer, 4)
    x, y = series()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    optimizer.close()
    with pytest.raises(RuntimeError, match="curvature_pass"):
        loss.backward()


def test_mixed_precision_is_close_to_the_reference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(hidden(), nn.Linear(8, 4))
    optimizer = stepping(model)
    x, y = torch.randn(12, 3), torch.randint(4, (12,))
    expected = reference(copy.deepcopy(model).double(), x.double(), y)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    optimizer.curvature_pass(logits)
    functional.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    for name, p in model.named_parameters():
        move, true = (p.detach() - before[name]).double(), expected[name] - before[name]
        assert float((move - true).norm()) < 0.1 * float(true.norm())


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh())


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_another_optimizer_that_measures_curvature_is_no_hindrance(gradient: str) -> None:
    model, twin = Classifier(gradient), Classifier(gradient)
    other, optimizer = SNOpt(model, rule="paper", lr=0.0, refresh_every=1), stepping(model)
    alone = SNOpt(twin, rule="paper", lr=0.0, refresh_every=1)
    for seed in range(5):
        x, y = series(seed=seed)
        twin.load_state_dict(model.state_dict())
        expected = reference(copy.deepcopy(model), x, y)
        backward(model, optimizer, x, y)
        optimizer.step()
        same(model, expected)
        other.step()
        alone.zero_grad()
        functional.cross_entropy(twin(x), y).backward()
        alone.step()
        other.zero_grad()
        for name, pair in alone.factors().items():
            torch.testing.assert_close(other.factors()[name], pair)
