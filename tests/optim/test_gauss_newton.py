"""Gauss-Newton steps: rows against autograd, steps against dense algebra and closed forms."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snopt import SNOpt, SNOptPreconditioner
from snopt.curvature.likelihoods import sample_losses
from snopt.optim.least_squares import LeastSquares
from tests.support.classifiers import (
    CLASSES,
    Classifier,
    Pictures,
    backward,
    gauss_newton,
    pictures,
    series,
)
from tests.support.training import flat


def per_sample_gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (N,) and their gradients (N, P), one backward pass for each sample."""
    losses, grads = [], []
    for k in range(len(x)):
        loss = functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        grad = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.detach())
        grads.append(torch.cat([g.flatten() for g in grad]))
    return torch.stack(losses), torch.stack(grads)


MODELS = {
    "direct": (lambda: Classifier("direct"), series),
    "checkpoint": (lambda: Classifier("checkpoint", "dopri5"), series),
    "convolutions": (Pictures, pictures),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_is_the_dense_solution(kind: str) -> None:
    """Steps with momentum, damping, decay and a group of a lower rate, rows from autograd.

    The last batch's labels are the model's own, so that damping and decay fade.
    """
    build, data = MODELS[kind]
    model = build()
    field = {id(p) for p in model.block.field.parameters()}
    weights = torch.cat(
        [
            torch.full((p.numel(),), 0.1 if id(p) in field else 1.0).double()
            for p in model.parameters()
        ]
    )
    damping, momentum, decay, lr = 0.03, 0.7, 0.2, 0.5
    groups = [{"params": model.block.field, "lr": 0.1 * lr}, {"params": model}]
    optimizer = SNOpt(
        groups,
        lr,
        rule="gauss_newton",
        damping=damping,
        momentum=momentum,
        weight_decay=decay,
        trust=1e9,
        backtrack=math.inf,
    )
    past = torch.zeros_like(weights)
    nears = []
    for seed in range(4):
        x, y = data() if kind == "convolutions" else data(seed=seed)
        if seed == 3:
            with torch.no_grad():
                model.head.weight.mul_(5)
                y = model(x).argmax(dim=1)
        losses, grads = per_sample_gradients(model, x, y)
        roots = (2 * losses).sqrt()
        rows, target = grads / (roots * len(x) ** 0.5)[:, None], roots / len(x) ** 0.5
        near = min(1.0, (2 * losses.mean().item()) ** 0.5)
        nears.append(near)
        before = flat(model)
        prior = momentum * past + near * decay * weights * before
        matrix = rows.T @ rows + torch.diag(max(near, 0.1) * damping / weights)
        d = prior + torch.linalg.solve(matrix, rows.T @ (target - rows @ prior))
        backward(model, optimizer, x, y)
        optimizer.step()
        torch.testing.assert_close(flat(model) - before, -lr * d, rtol=1e-7, atol=1e-10)
        past = d
    assert nears[0] == 1 > nears[-1] > 0


def test_one_step_solves_linear_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    optimizer = gauss_newton(model, lr=1.0, damping=1e-10, momentum=0.0)
    outputs = model(x)
    optimizer.curvature_pass(outputs, likelihood="gaussian")
    ((outputs - y).square().sum(1) / 2).mean().backward()
    optimizer.step()
    ones = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    best = torch.linalg.lstsq(ones, y).solution.squeeze(1)
    torch.testing.assert_close(flat(model), best, rtol=1e-5, atol=1e-6)


def test_with_much_damping_the_step_is_the_gradient() -> None:
    model = Classifier()
    x, y = series()
    optimizer = gauss_newton(model, lr=1.0, damping=1e9, momentum=0.0)
    before = flat(model)
    backward(model, optimizer, x, y)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    optimizer.step()
    torch.testing.assert_close((before - flat(model)) * 1e9, gradient, rtol=1e-5, atol=1e-6)


def test_it_fits_a_batch_in_far_fewer_steps_than_adam() -> None:
    x, y = series(count=12)
    first, second = Classifier(), Classifier()
    ours = SNOpt(first, 0.5, rule="gauss_newton", momentum=0.0)
    adam = torch.optim.Adam(second.parameters(), 0.05)
    for _ in range(30):
        backward(first, ours, x, y)
        ours.step()
        adam.zero_grad()
        functional.cross_entropy(second(x), y).backward()
        adam.step()
    ends = [functional.cross_entropy(model(x), y).item() for model in (first, second)]
    assert ends[0] < 0.1 * ends[1]


# -- losses of samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_samples_are_the_losses(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(9, CLASSES, dtype=dtype)).requires_grad_(True)
    y = torch.randint(CLASSES, (9,))
    losses = functional.cross_entropy(logits, y, reduction="none")
    (cotangent,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(sample_losses(logits.detach(), cotangent, "categorical"), losses)
    sure = (20 * logits.detach()).requires_grad_(True)
    y = sure.argmax(dim=1)
    (cotangent,) = torch.autograd.grad(functional.cross_entropy(sure, y, reduction="sum"), sure)
    gaps = sure.detach().double() - sure.detach().double().gather(1, y.unsqueeze(1))
    exact = torch.log1p(gaps.exp().scatter(1, y.unsqueeze(1), 0.0).sum(dim=1)).to(dtype)
    assert exact.min() < 1e-8
    found = sample_losses(sure.detach(), cotangent, "categorical")
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)
    errors = torch.randn(9, 2, 3, dtype=dtype)
    half = errors.square().sum(dim=(1, 2)) / 2
    torch.testing.assert_close(sample_losses(torch.zeros_like(errors), errors, "gaussian"), half)


@pytest.mark.parametrize("loss", ["smoothed", "weighted", "squares"])
def test_another_loss_is_refused(loss: str) -> None:
    model = Classifier()
    x, y = series()
    optimizer = gauss_newton(model)
    outputs = model(x)
    optimizer.curvature_pass(outputs)
    if loss == "squares":
        value = outputs.square().mean()
    elif loss == "smoothed":
        value = functional.cross_entropy(outputs, y, label_smoothing=0.2)
    else:
        value = functional.cross_entropy(outputs, y, weight=1.0 + torch.arange(CLASSES).double())
    with pytest.raises(ValueError, match="mean cross-entropy"):
        value.backward()


def test_samples_that_are_fitted_do_not_blow_up() -> None:
    model = Classifier().float()
    x, y = series()
    with torch.no_grad():
        model.head.weight.mul_(1e4)
        y = model(x.float()).argmax(dim=1)  # losses of exactly zero
    optimizer = gauss_newton(model, lr=1.0, damping=1e-6, momentum=0.0)
    before = flat(model)
    backward(model, optimizer, x.float(), y)
    optimizer.step()
    assert float((flat(model) - before).abs().max()) < 1e-2


# -- in a training loop ----------------------------------------------------------------------------


def test_scaled_losses_give_the_same_step() -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    x, y = series()
    ends = []
    for scaler, scale in ((None, 1.0), (Scaler(), 1024.0)):
        model = Classifier()
        optimizer = gauss_newton(model, grad_scaler=scaler)
        backward(model, optimizer, x, y, scale)
        for p in model.parameters():
            p.grad /= scale
        optimizer.step()
        ends.append(flat(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_a_resumed_run_goes_on_the_same() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    for seed in range(2):
        backward(model, optimizer, *series(seed=seed))
        optimizer.step()
    twin = copy.deepcopy(model)
    again = gauss_newton(twin)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, again)):
        for seed in (2, 3):
            backward(m, o, *series(seed=seed))
            o.step()
    assert torch.equal(flat(model), flat(twin))


def test_a_closure_and_the_preconditioner_alone_take_the_same_step() -> None:
    x, y = series()
    models = [Classifier() for _ in range(3)]
    first = gauss_newton(models[0])
    backward(models[0], first, x, y)
    first.step()
    second = gauss_newton(models[1])

    def closure() -> Tensor:
        second.zero_grad()
        outputs = models[1](x)
        second.curvature_pass(outputs)
        loss = functional.cross_entropy(outputs, y)
        loss.backward()
        return loss

    second.step(closure)
    alone = SNOptPreconditioner(models[2], rule="gauss_newton")
    sgd = torch.optim.SGD(models[2].parameters(), 0.5)
    outputs = models[2](x)
    alone.curvature_pass(outputs)
    functional.cross_entropy(outputs, y).backward()
    alone.step()
    sgd.step()
    for model in models[1:]:
        torch.testing.assert_close(flat(models[0]), flat(model))


def test_updates_stay_within_the_trust_region() -> None:
    model = Classifier()
    optimizer = gauss_newton(model, lr=1.0, damping=1e-8, trust=0.05)
    before = flat(model)
    backward(model, optimizer, *series())
    optimizer.step()
    assert float((flat(model) - before).norm()) == pytest.approx(0.05 * float(before.norm()))


def test_evaluations_between_steps_leave_no_rows() -> None:
    ends = []
    for evaluate in (False, True):
        model = Classifier()
        optimizer = gauss_newton(model)
        x, y = series()
        backward(model, optimizer, x, y)
        if evaluate:
            model.eval()
            torch.autograd.grad(functional.cross_entropy(model(x[:2]), y[:2]), model.head.weight)
            model.train()
            copy.deepcopy(model)(x[:3]).sum().backward()
        optimizer.step()
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_other_parameters_take_adams_update_at_a_hundredth() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = Classifier()
            self.time = nn.Linear(1, CLASSES).double()  # every sample shares its input
            self.scale = nn.Parameter(torch.ones(CLASSES, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            shift = self.time(torch.ones(1, dtype=torch.float64))
            scaled: Tensor = self.classifier(x) * self.scale + shift
            return scaled

    model = Scaled()
    optimizer = gauss_newton(model, lr=0.5)
    before = copy.deepcopy(model)
    backward(model, optimizer, *series())
    optimizer.step()
    for name, p in model.named_parameters():
        moved = (p - before.get_parameter(name)).abs()
        if name == "scale" or name.startswith("time"):
            torch.testing.assert_close(moved, torch.full_like(moved, 0.5 * 0.01), rtol=1e-4, atol=0)
    assert "scale" in optimizer.coverage().fallback


def test_gradients_that_are_not_finite_move_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    x, y = series()
    backward(model, optimizer, x, y)
    before = flat(model)
    rows = optimizer.method.capture
    real = rows.collect
    rows.collect = lambda: {n: r * float("nan") for n, r in real().items()}  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        optimizer.step()
    assert torch.equal(before, flat(model))
    assert "not finite" in caplog.text
    assert optimizer.diagnostics()["refresh_failures"] == 1


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    x, y = series()
    before = flat(model)
    backward(model, optimizer, x, y, float("nan"))
    optimizer.step()
    assert torch.equal(before, flat(model))


def test_without_damping_a_singular_matrix_gets_some() -> None:
    model = Classifier()
    optimizer = gauss_newton(model, damping=0.0, momentum=0.0)
    x, y = series(count=2)
    backward(model, optimizer, x[[0, 0, 0]], y[[0, 0, 0]])  # three times the same row
    optimizer.step()
    assert torch.isfinite(flat(model)).all()
    assert optimizer.diagnostics()["refresh_failures"] > 0


def test_diagnostics_tell_of_the_matrix() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    backward(model, optimizer, *series())
    optimizer.step()
    found = optimizer.diagnostics()
    assert isinstance(optimizer.method, LeastSquares)
    assert found["gram_mean"] > 0
    assert found["damping"] == 0.01
    assert optimizer.curvature_seconds > 0
