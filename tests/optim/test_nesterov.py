"""Adam's first moment looked ahead, against torch's NAdam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snopt import SNOpt
from tests.support.training import flat

BETAS = (0.8, 0.95)


class Bare(nn.Module):
    """Parameters without a layer: no basis turns their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        scales = torch.logspace(-2, 2, 6, dtype=torch.float64)
        return (scales * (self.w - 0.3).square()).sum() + self.w.prod()


def nadam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's, its own schedule of the first decay at its end; products of decays are float32."""
    return torch.optim.NAdam(parameters, lr=0.02, betas=BETAS, eps=1e-8, momentum_decay=1e9)


def test_without_a_basis_it_is_nadam() -> None:
    ours, theirs = Bare(), Bare()
    optimizer = SNOpt(
        ours, 0.02, rule="adam", betas=BETAS, nesterov=True, warmup_steps=0, cautious=False,
        weight_decay=0,
    )  # fmt: skip
    reference = nadam(list(theirs.parameters()))
    for _ in range(20):
        for model, step in ((ours, optimizer), (theirs, reference)):
            step.zero_grad()
            model().backward()
            step.step()
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-6, atol=1e-8)


def test_in_a_basis_it_is_nadam_there() -> None:
    """Gradients that are diagonal have the unit vectors for a basis, up to order and sign."""
    ours = nn.Linear(4, 4, bias=False).double()
    theirs = copy.deepcopy(ours)
    optimizer = SNOpt(
        ours, 0.02, rule="adam", basis="gradient", betas=BETAS, nesterov=True, refresh_every=1,
        warmup_steps=0, cautious=False, weight_decay=0,
    )  # fmt: skip
    reference = nadam(list(theirs.parameters()))
    for k in range(15):
        gradient = torch.diag(torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64) * 0.9**k)
        for layer, step in ((ours, optimizer), (theirs, reference)):
            layer.weight.grad = gradient.clone()
            step.step()
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-6, atol=1e-8)


def test_it_is_a_setting_of_a_group_and_of_one_rule() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    groups = [{"params": model[0], "nesterov": True}, {"params": model}]
    optimizer = SNOpt(groups, rule="adam")
    assert [group["nesterov"] for group in optimizer.param_groups] == [True, False]
    with pytest.raises(ValueError, match="nesterov=True: rule='paper' has no such setting"):
        SNOpt(model, rule="paper", nesterov=True)
    with pytest.raises(ValueError, match="nesterov='often'; expected True or False"):
        SNOpt(model, rule="adam", nesterov="often")  # type: ignore[arg-type]
