"""
A spiral from its observations
==============================

A trajectory of x' = A x³ is observed at 200 times. A Neural ODE learns the field behind it. This
is torchdiffeq's demonstration. SNOpt and Adam train it from the same initial weights, on the same
batches, for the same number of steps.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from snopt import ODEBlock, SNOpt

# %%
# The data
# --------
# A block without parameters computes the true trajectory. ``block(x, t)`` has time first.


class TrueField(nn.Module):
    """x' = A x³."""

    def forward(self, t, x):
        """The slope at x."""
        return x**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])


times = torch.linspace(0.0, 12.0, 200)
with torch.no_grad():
    exact = ODEBlock(TrueField(), rtol=1e-7, atol=1e-9)
    truth = exact(torch.tensor([[2.0, 0.0]]), times)[:, 0]

# %%
# The model
# ---------
# A sample is ten observations in a row: from the first, the block has to predict the others.


class Field(nn.Module):
    """A network of x³, as in torchdiffeq's demonstration."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x**3)


def train(make_optimizer, steps=300):
    """A trained block, and the error of the whole trajectory every ten steps."""
    torch.manual_seed(0)
    block = ODEBlock(Field(), method="rk4", options={"steps": 1}, gradient="direct")
    optimizer = make_optimizer(block)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    errors = []
    for step in range(steps):
        if step % 10 == 0:
            errors.append(float((predict(block) - truth).abs().mean()))
        start = torch.randint(190, (32,))
        wanted = torch.stack([truth[start + i] for i in range(10)])
        optimizer.zero_grad()
        (block(wanted[0], times[:10]) - wanted).square().mean().backward()
        optimizer.step()
        schedule.step()
    return block, errors


@torch.no_grad()
def predict(block):
    """The whole trajectory from its first point."""
    return block(truth[:1], times)[:, 0]


# %%
# Train
# -----
# Learning rates fall to zero by a cosine. Each optimizer has the rate, of 0.003, 0.01, 0.03 and
# 0.1, that ended with the smallest error. The data have no noise, so weights need no decay. This is
# one seed, so it is only an illustration.

ours, our_errors = train(lambda block: SNOpt(block, lr=0.03, weight_decay=0))
adam, adam_errors = train(lambda block: torch.optim.Adam(block.parameters(), lr=0.01))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(*truth.T, "k.", ms=3, label="observed")
left.plot(*predict(ours).T, label="SNOpt")
left.plot(*predict(adam).T, "--", label="Adam")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
for errors, name in ((our_errors, "SNOpt"), (adam_errors, "Adam")):
    right.semilogy(range(0, 300, 10), errors, label=name)
right.set(xlabel="step", ylabel="mean error of the trajectory")
figure.tight_layout()
