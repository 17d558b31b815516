"""Parameter groups, schedules, closures, warm-up, damping and trust region."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import KFAC, GaussNewton, LevenbergMarquardt, SNOpt
from tests.support import problems
from tests.support.training import XS, YS, flat, net, train

X, Y = problems.data()


# -- groups, schedules, closures ------------------------------------------------------------------


def test_groups_of_modules_with_settings_of_their_own() -> None:
    model = net()
    optimizer = SNOpt(
        [{"params": model[1].field, "lr": 0.0, "damping": 0.5}, {"params": model}],
        rule="paper",
        lr=0.02,
    )
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.02]
    assert [g["damping"] for g in optimizer.param_groups] == [0.5, 0.05]
    before = copy.deepcopy(model)
    train(model, optimizer, 2)
    assert torch.equal(flat(model[1]), flat(before[1]))
    assert not torch.equal(flat(model[0]), flat(before[0]))
    names = [n for g in optimizer.param_groups for n in g["param_names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    # The same settings everywhere are one group, in any grouping.
    ends = []
    for groups in (net(), None):
        model = net() if groups is None else groups
        grouped = [{"params": model[1].field}, {"params": model}] if groups is None else model
        ends.append(train(model, SNOpt(grouped, 0.02, rule="paper"), 3))
    assert torch.equal(*ends)


def test_group_specifications() -> None:
    model = net()
    for groups in (
        [{"params": {"stem": model[0], "rest": model}}],
        [{"params": [model[0], model[1]]}],
        [{"params": [("a", model[0])]}],
    ):
        train(net(), SNOpt(groups, 0.01, rule="paper"), 0)
    with pytest.raises(TypeError, match="needs modules"):
        SNOpt([{"params": list(model.parameters())}], rule="paper")
    with pytest.raises(TypeError, match=r"model\.parameters\(\)"):
        SNOpt(model.parameters(), rule="paper")
    with pytest.raises(ValueError, match="no parameters"):
        SNOpt(nn.ReLU(), rule="paper")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0.*>= 0"),
        ({"lr": float("nan")}, r"lr=nan"),
        ({"momentum": 1.0}, r"momentum=1\.0.*\[0, 1\)"),
        ({"weight_decay": -0.1}, r"weight_decay"),
        ({"damping": -1.0}, r"damping=-1\.0"),
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"rule": "adam", "betas": (0.9, 1.0)}, r"betas\[1\]=1\.0"),
        ({"kl_clip": -1.0}, r"kl_clip"),
        ({"refresh_every": 0}, r"refresh_every=0.*>= 1"),
        ({"refresh_every": 2.5}, r"refresh_every=2\.5.*whole"),
        ({"grid_points": 1}, r"grid_points=1"),
        ({"curvature_samples": 0}, r"curvature_samples=0"),
        ({"rule": "newton"}, r"rule='newton'.*paper, adam, kfac"),
        ({"basis": "identity"}, r"basis='identity'.*curvature"),
        ({"curvature": "hessian"}, r"curvature='hessian'.*fisher"),
        ({"sampling": "random"}, r"sampling='random'.*grid"),
        ({"precondition": "none"}, r"precondition='none'.*ode"),
        ({"fallback": "sgd"}, r"fallback='sgd'"),
        ({"rule": "adam", "momentum": 0.9}, r"momentum=0\.9.*betas"),
        ({"rule": "adam", "normalize": 1.5}, r"normalize=1\.5.*\[0, 1\]"),
        ({"rule": "adam", "normalize": True}, r"normalize=True.*\[0, 1\]"),
        ({"rule": "paper", "normalize": 0.5}, r"normalize=0\.5: rule='paper' has no such"),
    ],
)
def test_wrong_settings_name_value_and_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SNOpt(net(), **{"rule": "paper", **settings})


def test_none_switches_off_what_may_be_none() -> None:
    model = net()
    optimizer = SNOpt(model, averaging=None)
    assert not optimizer.averages
    before = train(model, optimizer, 3)
    optimizer.eval()
    assert torch.equal(flat(model), before)
    assert KFAC(net()).param_groups[0]["kl_clip"] == 1e-3
    assert KFAC(net(), kl_clip=None).param_groups[0]["kl_clip"] is None
    assert GaussNewton(net()).param_groups[0]["trust"] == 0.2
    assert GaussNewton(net(), trust=None).param_groups[0]["trust"] is None


def test_none_is_the_default_of_all_others() -> None:
    plain = SNOpt(net())
    for name, value in vars(plain.rule).items():
        if name not in ("averaging", "kl_clip", "trust"):
            assert getattr(SNOpt(net(), **{name: None}).rule, name) == value


def test_learning_rate_schedulers() -> None:
    model, halved = net(), net()
    optimizer = SNOpt(model, 0.02, rule="paper")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    by_hand = SNOpt(halved, 0.02, rule="paper")
    for step in range(4):
        train(model, optimizer, 1)
        scheduler.step()
        by_hand.param_groups[0]["lr"] = 0.02 * 0.5**step
        train(halved, by_hand, 1)
    assert torch.equal(flat(model), flat(halved))
    assert optimizer.param_groups[0]["lr"] == 0.02 * 0.5**4


def test_warm_up_scales_the_first_steps() -> None:
    model, plain = net(), net()
    optimizer, full = (
        SNOpt(model, 0.02, rule="paper", warmup_steps=4),
        SNOpt(plain, 0.02, rule="paper"),
    )
    for step in range(6):
        plain.load_state_dict(model.state_dict())
        before = flat(model)
        ratio = (train(model, optimizer, 1) - before).norm() / (
            train(plain, full, 1) - before
        ).norm()
        assert ratio.item() == pytest.approx(min(1.0, (step + 1) / 4), rel=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_closures() -> None:
    model, plain = net(), net()
    optimizer, other = (
        SNOpt(model, 0.02, rule="paper", refresh_every=2),
        SNOpt(plain, 0.02, rule="paper", refresh_every=2),
    )
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problems.squares(YS)(model(XS))
        loss.backward()
        calls.append(loss.item())
        return loss

    for _ in range(4):
        value = optimizer.step(closure)
        assert value.item() == calls[-1]
    assert len(calls) == 4
    assert torch.equal(flat(model), train(plain, other, 4))


def test_levenberg_marquardt_follows_the_quality_of_the_model() -> None:
    model = net()
    damping = LevenbergMarquardt(0.05, every=1, decay=0.5)
    optimizer = SNOpt(model, 1.0, rule="kfac", kl_clip=1e-3, refresh_every=1, damping=damping)
    calls, values = [], []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problems.squares(YS)(model(XS))
        loss.backward()
        calls.append(loss.item())
        return loss

    for _ in range(5):
        optimizer.step(closure)
        values.append(damping.value)
        assert optimizer.method.capture.armed
    assert len(calls) == 10  # once more per adaptation
    assert values[-1] != 0.05
    assert optimizer.diagnostics()["damping"] in values
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        optimizer.step()


def test_levenberg_marquardt_takes_a_number_for_a_loss_and_asks_for_one() -> None:
    found = []
    for returned in (Tensor.detach, Tensor.item, lambda loss: None):
        model, damping = net(), LevenbergMarquardt(0.05, every=1, decay=0.5)
        optimizer = SNOpt(model, 0.02, rule="kfac", damping=damping)

        def closure(
            model: nn.Module = model, optimizer: SNOpt = optimizer, returned: Any = returned
        ) -> Any:
            optimizer.zero_grad()
            loss = problems.squares(YS)(model(XS))
            loss.backward()
            return returned(loss)

        if found[1:]:
            with pytest.raises(ValueError, match="a closure that returns the loss"):
                optimizer.step(closure)
            assert torch.equal(flat(model), flat(net()))
        else:
            optimizer.step(closure)
            found.append(damping.value)
    assert found[0] == found[1] != 0.05


def test_levenberg_marquardt_by_hand() -> None:
    damping = LevenbergMarquardt(1.0, decay=0.5, every=2, floor=0.1, ceiling=3.0)
    damping.observe(-0.9, -1.0)
    assert damping.value == 0.25
    damping.observe(-0.5, -1.0)
    assert damping.value == 0.25
    damping.observe(0.1, -1.0)
    assert damping.value == 1.0
    damping.observe(float("nan"), -1.0)
    assert damping.value == 3.0
    damping.observe(-1.0, 1.0)
    assert damping.value == 3.0
    for _ in range(3):
        damping.observe(-1.0, -1.0)
    assert damping.value == 0.1
    for bad in ({"initial": 0.0}, {"decay": 1.0}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LevenbergMarquardt(**bad)


def test_scheduled_damping() -> None:
    model, plain = net(), net()
    optimizer = SNOpt(model, 0.02, rule="paper", damping=lambda step: 0.1 / (step + 1))
    by_hand = SNOpt(plain, 0.02, rule="paper", damping=0.1)
    for step in range(4):
        train(model, optimizer, 1)
        assert optimizer.diagnostics()["damping"] == pytest.approx(0.1 / (step + 1))
        by_hand.param_groups[0]["damping"] = 0.1 / (step + 1)
        train(plain, by_hand, 1)
    assert torch.equal(flat(model), flat(plain))


def test_kl_clip_bounds_the_step() -> None:
    """The whole step is scaled so that lr^2 times direction and gradient meet the bound."""
    bound = 1e-4
    twin = net()
    free = SNOpt(twin, 0.5, rule="kfac", momentum=0.0, kl_clip=1e12, damping=0.01)
    start = flat(twin)
    train(twin, free, 1)
    step = flat(twin) - start
    grads = problems.gradients(twin)
    total = 0.5 * float(-(step @ grads))  # lr^2 d.g
    clipped = net()
    train(clipped, SNOpt(clipped, 0.5, rule="kfac", momentum=0.0, kl_clip=bound, damping=0.01), 1)
    scale = min(1.0, math.sqrt(bound / total))
    assert scale < 1
    torch.testing.assert_close(flat(clipped) - start, scale * step, rtol=1e-9, atol=1e-12)
