"""The preconditioner in front of another optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snopt import SNOpt, SNOptPreconditioner
from tests.support import problems
from tests.support.training import XS, YS, flat, net, train


def test_preconditioner_before_sgd_is_the_optimizer() -> None:
    model, plain = net(), net()
    preconditioner = SNOptPreconditioner(model, rule="paper", refresh_every=2, damping=0.1)
    sgd = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for _ in range(5):
        sgd.zero_grad()
        problems.squares(YS)(model(XS)).backward()
        preconditioner.step()
        sgd.step()
    whole = SNOpt(plain, 0.02, rule="paper", momentum=0.9, refresh_every=2, damping=0.1)
    torch.testing.assert_close(flat(model), train(plain, whole, 5), rtol=1e-10, atol=1e-12)
    assert preconditioner.factors().keys() == whole.factors().keys()


def test_preconditioner_before_adam_changes_only_its_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    preconditioner = SNOptPreconditioner(model, rule="kfac")
    adam = torch.optim.Adam(model.parameters(), 0.01)
    problems.squares(YS)(model(XS)).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    preconditioner.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p.grad, before[n])}
    assert changed == set(preconditioner.coverage().preconditioned)
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}
    adam.step()
    follows, step = "set it on the optimizer that follows", "leave it out, or take SNOpt"
    advice = {"lr": follows, "momentum": follows, "kl_clip": step, "backtrack": step}
    for foreign, words in advice.items():
        with pytest.raises(TypeError, match=f"^{foreign}: .*{words}"):
            SNOptPreconditioner(model, **{foreign: 0.1})
