"""``basis="gradient"`` beside SOAP of pytorch-optimizer, step by step, where both define the same.

Where they differ, and what the test does about it:

* SOAP's first step gathers statistics and moves nothing. Ours moves: here its rate is zero, and its
  moments are cleared.
* SOAP begins with eigenvectors; later bases, at the end of a step, come by power iteration in
  single precision, sorted by eigenvalue. Ours come at the beginning of a step, whose gradient is in
  them, by a shifted iteration from the last one or the identity. Here both have the eigenvectors of
  the first gradient, and keep them.
* A layer's bias is a column of its weight here, a vector with a step of Adam's there. A
  convolution's kernel is one dimension here, two there. These layers are linear and have no bias.
* Of eigenvectors of equal eigenvalues each takes its own. These weights are square, with gradients
  of full rank.
* Ours decays weights before the step, SOAP after it: apart by the square of the rate.
* eps is added to roots of corrected second moments here, of uncorrected ones there: it is 1e-30.
"""

import pytest
import torch
from torch import nn

import snopt.optim.preconditioner
from snopt import ODEBlock, SNOpt
from snopt.curvature.kronecker import eigenbasis

SOAP = pytest.importorskip("pytorch_optimizer").SOAP


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    block = ODEBlock(Field(), method="rk4", gradient="direct", options={"steps": 3})
    return nn.Sequential(nn.Linear(4, 4, bias=False), block).double()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equal_to_soap_between_refreshes(
    weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snopt.optim.preconditioner, "followed", lambda x, old: eigenbasis(x))
    ours, theirs = net(), net()
    rare = 1000
    mine = SNOpt(
        ours,
        0.0,
        betas=(0.9, 0.95),
        eps=1e-30,
        weight_decay=weight_decay,
        refresh_every=rare,
        warmup_steps=0,
        cautious=False,
    )
    soap = SOAP(
        theirs.parameters(),
        lr=0.02,
        betas=(0.9, 0.95),
        eps=1e-30,
        weight_decay=weight_decay,
        precondition_frequency=rare,
    )
    start = ours[0].weight.detach().clone()
    for step in range(12):
        x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, soap)):
            optimizer.zero_grad()
            (model(x) - x.sin().flip(1)).square().mean().backward()
            optimizer.step()
        if step == 0:
            assert torch.equal(ours[0].weight, start)
            assert torch.equal(theirs[0].weight, start)
            for learned in mine.method.learned.values():
                learned.state.clear()
            mine.param_groups[0]["lr"] = 0.02
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            near = 1e-10 if weight_decay == 0 else 1e-3
            torch.testing.assert_close(p, q, rtol=near, atol=near)
    assert float((ours[0].weight.detach() - start).norm()) > 0.1
