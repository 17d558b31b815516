"""The update: parity with the reference, invariances, refreshing."""

from __future__ import annotations

import copy
import logging
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from snopt.curvature.kronecker import Basis, Factors
from tests.support import problems, reference
from tests.support.problems import GRADIENTS
from tests.support.training import XS, YS, flat, net, train

X, Y = problems.data()


# -- against the reference ------------------------------------------------------------------------


OF_RULE: dict[str, dict[str, Any]] = {"paper": {"momentum": 0.9, "damping": 0.05}, "adam": {}}


@cache
def of_the_reference(rule: str) -> list[Tensor]:
    """The weights after each of seven steps."""
    twin, loss, found = problems.field(), problems.squares(Y), []
    theirs = reference.ReferenceOptimizer(
        reference.layers(twin), 0.02, rule=rule, weight_decay=0.01, **OF_RULE[rule]
    )
    for step in range(7):
        twin.zero_grad()
        loss(reference.nodes(twin, X, (0.0, 1.0), 50)[-1]).backward()
        factors = reference.factors(twin, X, (0.0, 1.0), loss, 100) if step % 3 == 0 else None
        theirs.step(len(X), factors)
        found.append(flat(twin))
    return found


# Factors depend on the gradient, and what is made of them on the rule.
@pytest.mark.parametrize(
    ("rule", "kind"), [*(("paper", kind) for kind in GRADIENTS), ("adam", "direct")]
)
def test_parity_with_the_reference_step_by_step(rule: str, kind: str) -> None:
    field, loss = problems.field(), problems.squares(Y)
    own: dict[str, Any] = {"basis": "curvature", "refresh_every": 3, "warmup_steps": 0}
    block = ODEBlock(field, method="rk4", gradient=kind, options={"steps": 30})
    plain = {} if rule == "paper" else {"cautious": False}
    ours = SNOpt(block, 0.02, rule=rule, weight_decay=0.01, **own, **OF_RULE[rule], **plain)
    start = flat(field)
    for theirs in of_the_reference(rule):
        ours.zero_grad()
        loss(block(X)).backward()
        ours.step()
        moved = float((flat(field) - start).norm())
        assert float((flat(field) - theirs).norm()) < 5e-4 * moved
    assert moved > 0.01


def test_paper_rule_with_given_factors_is_the_reference_to_rounding() -> None:
    """The same factors in both, so that nothing but the update is compared."""
    field = problems.field()
    block = ODEBlock(field, method="rk4", gradient="direct", options={"steps": 4})
    twin, loss = copy.deepcopy(field), problems.squares(Y)
    for rule, plain in (("paper", {}), ("adam", {"cautious": False})):
        ours = SNOpt(
            block, 0.02, rule=rule, refresh_every=2, weight_decay=0.1, warmup_steps=0, **plain
        )
        theirs = reference.ReferenceOptimizer(
            reference.layers(twin), 0.02, rule=rule, weight_decay=0.1
        )
        for step in range(5):
            ours.zero_grad()
            loss(block(X)).backward()
            for p, q in zip(field.parameters(), twin.parameters(), strict=True):
                q.grad = p.grad.clone()
            ours.step()
            pairs = {n.removeprefix("field."): f for n, f in ours.factors().items()}
            theirs.step(len(X), pairs if step % 2 == 0 else None)
            torch.testing.assert_close(flat(field), flat(twin), rtol=1e-9, atol=1e-11)


def test_kfac_rule_is_the_dense_damped_inverse() -> None:
    field, loss = problems.field(), problems.squares(Y)
    block = ODEBlock(field, method="rk4", gradient="direct", options={"steps": 4})
    damping, lr = 0.02, 0.1
    optimizer = SNOpt(block, lr, rule="kfac", damping=damping, momentum=0.0, kl_clip=1e9)
    before = copy.deepcopy(field)
    loss(block(X)).backward()
    optimizer.step()
    for name, (a, b) in optimizer.factors().items():
        layer = field.get_submodule(name.removeprefix("field."))
        old = before.get_submodule(name.removeprefix("field."))
        grad = layer.weight.grad
        if layer.bias is not None:
            grad = torch.cat([grad, layer.bias.grad[:, None]], 1)
        pi = math.sqrt((a.trace() / len(a)) / (b.trace() / len(b)))
        left = b + math.sqrt(damping) / pi * torch.eye(len(b)).double()
        right = a + pi * math.sqrt(damping) * torch.eye(len(a)).double()
        block_matrix = torch.kron(left, right)
        move = -lr * torch.linalg.solve(block_matrix, grad.reshape(-1)).view_as(grad)
        got = layer.weight.detach() - old.weight.detach()
        torch.testing.assert_close(got, move[:, : got.shape[1]], rtol=1e-8, atol=1e-12)


def test_adam_rule_on_plain_parameters_is_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    pairs = [
        (ours, SNOpt(ours, 0.1, warmup_steps=0, weight_decay=0.01, cautious=False)),
        (theirs, torch.optim.AdamW(theirs.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.01)),
    ]
    for module, optimizer in pairs:
        for _ in range(6):
            optimizer.zero_grad()
            module(x).sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-9, atol=1e-11)


def test_paper_rule_on_plain_parameters_is_sgd_with_momentum() -> None:
    ours, theirs = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    pairs = [
        (ours, SNOpt(ours, 0.1, rule="paper", momentum=0.9)),
        (theirs, torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)),
    ]
    for module, optimizer in pairs:
        for _ in range(6):
            optimizer.zero_grad()
            module(x).sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-10, atol=1e-12)


# -- invariances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["paper", "kfac"])
@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
def test_order_and_signs_of_eigenvectors_do_not_matter(
    rule: str, basis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import snopt.optim.preconditioner

    real = snopt.optim.preconditioner.eigenbasis
    generator = torch.Generator().manual_seed(1)

    def scrambled(factors: Factors) -> Basis:
        plain = real(factors)
        ((u_a,),), ((u_b,),) = plain.u_a, plain.u_b
        parts = []
        for values, vectors in ((plain.values_a, u_a), (plain.values_b, u_b)):
            order = torch.randperm(values.shape[1], generator=generator)
            signs = torch.randint(0, 2, (values.shape[1],), generator=generator) * 2.0 - 1
            parts.append((values[:, order], (vectors * signs.to(vectors.dtype))[:, :, order]))
        (values_a, u_a), (values_b, u_b) = parts
        return Basis(values_a, ((u_a,),), values_b, ((u_b,),))

    ends = []
    for function in (real, scrambled):
        monkeypatch.setattr(snopt.optim.preconditioner, "eigenbasis", function)
        model = net()
        # Gradients of few steps leave a null space whose basis is chosen by rounding: one refresh.
        period = 2 if basis == "curvature" else 100
        optimizer = SNOpt(
            model, 0.02, rule=rule, basis=basis, refresh_every=period, carry_over=True
        )
        ends.append(train(model, optimizer, 6))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("rule", ["adam", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_samples_moves_the_path_by_rounding_alone(
    dtype: torch.dtype, rule: str, basis: str
) -> None:
    """A gradient of few samples leaves spaces of equal eigenvalues: rounding must not turn them."""
    x = torch.randn(20, 9, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = torch.randn(20, 9, 2, generator=torch.Generator().manual_seed(3)).to(dtype)
    paths = []
    for generator in (None, torch.Generator().manual_seed(4)):
        model = net().to(dtype)
        optimizer = SNOpt(model, 0.02, rule=rule, basis=basis, refresh_every=2, carry_over=True)
        start = flat(model)
        for batch, targets in zip(x, y, strict=True):
            order = torch.arange(9) if generator is None else torch.randperm(9, generator=generator)
            optimizer.zero_grad()
            problems.squares(targets[order])(model(batch[order])).backward()
            optimizer.step()
        paths.append(flat(model) - start)
    least = 1e-3 if dtype == torch.float32 else 1e-9
    assert float((paths[0] - paths[1]).norm() / paths[0].norm()) < least


@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("rule", ["paper", "adam", "kfac"])
def test_every_rule_and_basis_lowers_the_loss(rule: str, basis: str) -> None:
    model = net()
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.stack([x[:, 0] - x[:, 1], torch.sin(x[:, 2])], 1)
    settings: dict[str, Any] = {"damping": 0.1} if rule == "kfac" else {}
    optimizer = SNOpt(model, 0.02, rule=rule, basis=basis, refresh_every=5, **settings)
    loss = problems.squares(y)
    before = loss(model(x)).item()
    train(model, optimizer, 40, x, y)
    assert loss(model(x)).item() < 0.9 * before
    diagnostics = optimizer.diagnostics()
    assert diagnostics["refresh_failures"] == 0
    assert {"damping", "condition_number", "direction_over_gradient"} <= set(diagnostics)
    assert optimizer.curvature_seconds > 0


def test_gradient_basis_of_a_convolution_is_that_of_its_modes() -> None:
    """Against Adam in a basis that is written out: channels by positions, the bias on its own."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 2).double()
    optimizer = SNOpt(conv, 0.01, refresh_every=100, warmup_steps=0, cautious=False, weight_decay=0)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    mean, square, u_b, u_a = torch.zeros(4, 13).double(), torch.zeros(4, 13).double(), None, None
    for count in range(1, 4):
        optimizer.zero_grad()
        conv(x).tanh().square().sum().backward()
        grad = torch.cat([conv.weight.grad.flatten(1), conv.bias.grad[:, None]], 1)
        before = torch.cat([conv.weight.detach().flatten(1), conv.bias.detach()[:, None]], 1)
        if u_a is None:
            split = conv.weight.grad.flatten(2)
            channels = reference.turned(torch.einsum("ock,odk->cd", split, split), None)
            positions = reference.turned(torch.einsum("ock,ocl->kl", split, split), None)
            u_a = torch.block_diag(torch.kron(channels, positions), torch.ones(1, 1))
            u_b = reference.turned(grad @ grad.T, None)
        inside = u_b.T @ grad @ u_a
        mean = 0.9 * mean + 0.1 * inside
        square = 0.95 * square + 0.05 * inside.square()
        step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.95**count)).sqrt() + 1e-8)
        optimizer.step()
        after = torch.cat([conv.weight.detach().flatten(1), conv.bias.detach()[:, None]], 1)
        torch.testing.assert_close(after, before - 0.01 * u_b @ step @ u_a.T)


def test_carry_over_keeps_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a basis that does not change, refreshing is not seen at all; dropping is."""
    import snopt.optim.preconditioner

    real, ends = snopt.optim.preconditioner.eigenbasis, {}
    for carry, period in ((True, 100), (True, 1), (False, 1)):
        found: dict[tuple[int, ...], Basis] = {}

        def first(factors: Factors, found: dict[tuple[int, ...], Basis] = found) -> Basis:
            return found.setdefault(tuple(factors.b[0][0].shape), real(factors))

        monkeypatch.setattr(snopt.optim.preconditioner, "eigenbasis", first)
        block = ODEBlock(problems.field(), method="rk4", gradient="direct", options={"steps": 4})
        optimizer = SNOpt(block, 0.02, rule="paper", refresh_every=period, carry_over=carry)
        ends[carry, period] = train(block, optimizer, 6, X, Y)
        assert len(found) == len(optimizer.method.layers)
    torch.testing.assert_close(ends[True, 1], ends[True, 100], rtol=1e-9, atol=1e-11)
    assert not torch.allclose(ends[False, 1], ends[True, 1], rtol=1e-6)


# -- refreshing -----------------------------------------------------------------------------------


def test_staggered_refreshes_are_spread_over_the_period() -> None:
    model = net()
    optimizer = SNOpt(model, 0.02, rule="paper", refresh_every=10, stagger=True)
    core = optimizer.method
    layers, counts = len(core.layers), []
    for _ in range(21):
        before = core.refreshes
        train(model, optimizer, 1)
        counts.append(core.refreshes - before)
    assert counts[0] == layers  # nobody goes without at the start
    assert max(counts[1:]) == 1
    assert sum(counts[1:11]) == sum(counts[11:21]) == layers


def test_curvature_that_is_not_finite_is_discarded(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = SNOpt(model, 0.0, rule="paper", refresh_every=1)
    train(model, optimizer, 1)
    kept = optimizer.factors()
    optimizer.zero_grad()
    problems.squares(YS)(model(XS)).backward()
    optimizer.method.capture.sums["4"].b.fill_(float("nan"))
    with caplog.at_level(logging.WARNING, logger="snopt"):
        optimizer.step()
    assert "no new basis for '4', so the last one stays" in caplog.text
    assert "not finite" in caplog.text
    assert optimizer.diagnostics()["refresh_failures"] == 1
    assert torch.equal(optimizer.factors()["4"][1], kept["4"][1])
    assert flat(model).isfinite().all()


def test_a_first_refresh_that_fails_gives_the_plain_update(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(matrix: Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    model = net()
    plain = net()
    optimizer = SNOpt(model, 0.02, rule="paper", refresh_every=5)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="snopt"):
        patch.setattr(torch.linalg, "eigh", broken)
        train(model, optimizer, 1)
    assert len(caplog.messages) == 3  # layers of one size have one reason, and one line
    assert "'0', '1.field.outer', so the fallback update is taken" in caplog.text
    torch.testing.assert_close(
        flat(model), train(plain, torch.optim.SGD(plain.parameters(), 0.02), 1)
    )
    assert optimizer.diagnostics()["refresh_failures"] == len(optimizer.method.layers)
    train(model, optimizer, 1)  # asked again at once, not a period later
    assert len(optimizer.factors()) == len(optimizer.method.layers)


def test_parameters_without_gradients_stay() -> None:
    model = net()
    model[1].field.spare = nn.Linear(3, 3).double()
    before = flat(model[1].field.spare)
    optimizer = SNOpt(model, 0.02, rule="paper", weight_decay=0.5)
    model[1].gradient = "direct"
    train(model, optimizer, 2)
    assert torch.equal(flat(model[1].field.spare), before)
