"""
Two rings: a continuous normalising flow
========================================

A flow moves points by an ODE and keeps track of their density p. The state is the position and
log p, whose derivative is minus the divergence of the field. In the plane the divergence is a sum
of two derivatives, computed exactly. The flow is trained by maximum likelihood.
"""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation
from torch import nn

from snopt import ODEBlock, SNOpt


def rings(number):
    """Points on two noisy rings."""
    angle = 2 * math.pi * torch.rand(number)
    radius = torch.where(torch.rand(number) < 0.5, 1.0, 2.2) + 0.08 * torch.randn(number)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


class Flow(nn.Module):
    """Position and log-density."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        )

    def forward(self, t, state):
        """Slopes of both. Training differentiates the divergence again."""
        x, _ = state
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            slope = self.net(torch.cat([x, t.expand(len(x), 1)], 1))
            rows = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0] for i in (0, 1)]
            divergence = rows[0][:, :1] + rows[1][:, 1:]
        return slope, -divergence


# %%
# The flow takes data at t = 1 back to a normal distribution at t = 0, so time runs backwards. Every
# batch is drawn anew, so nothing can be overfitted and weights need no decay.

torch.manual_seed(0)
block = ODEBlock(Flow(), (1.0, 0.0), method="rk4", options={"steps": 6}, gradient="direct")
optimizer = SNOpt(block, lr=0.01, weight_decay=0)
losses = []
for _ in range(250):
    x = rings(256)
    optimizer.zero_grad()
    z, change = block((x, torch.zeros(len(x), 1)))
    normal = -0.5 * z.square().sum(1, keepdim=True) - math.log(2 * math.pi)
    loss = -(normal - change).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"negative log-likelihood: {losses[0]:.2f} at first, {sum(losses[-20:]) / 20:.2f} at the end")

# %%
# To draw samples, the same field carries normal points from t = 0 to t = 1.

optimizer.eval()
frames = torch.linspace(0.0, 1.0, 20)
forward = ODEBlock(block.field, (0.0, 1.0), method="rk4", options={"steps": 1}, gradient="direct")
with torch.no_grad():
    start = torch.randn(1500, 2)
    path = forward((start, torch.zeros(len(start), 1)), frames)[0]

figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), sharey=True)
for axis, (title, dots) in zip(
    axes,
    {"data": rings(1500), "samples, t = 0.5": path[10], "t = 1": path[-1]}.items(),
    strict=True,
):
    axis.scatter(*dots.T, s=2, alpha=0.5)
    axis.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
figure.tight_layout()

# %%
# The same as an animation:

figure, axes = plt.subplots(figsize=(4.2, 4.2))
dots = axes.scatter(*path[0].T, s=3, alpha=0.5)
axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")


def draw(i):
    """The i-th frame; the last one is held."""
    dots.set_offsets(path[min(i, len(path) - 1)])
    axes.set_title(f"t = {frames[min(i, len(path) - 1)]:.2f}")
    return [dots]


movie = FuncAnimation(figure, draw, frames=len(path) + 8, interval=90)
