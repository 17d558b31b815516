"""
Second-order families: trajectories that cross
==============================================

A first-order ODE in one dimension cannot swap two points, because their paths would have to cross.
An ODE with a momentum can. ``snopt.dynamics`` has such systems as fields for a block. Here they
learn the map x -> -x.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from snopt import ODEBlock, SNOpt
from snopt.dynamics import HBNODE, NODE, SONODE, learned_scalars

x = torch.linspace(-1.0, 1.0, 20)[:, None]
times = torch.linspace(0.0, 1.0, 30)


class Force(nn.Module):
    """The inner field f(t, h)."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, t, h):
        """The force, or the velocity, at h."""
        return self.net(h)


def train(make_system, parts):
    """The loss and the paths of all points."""
    torch.manual_seed(0)
    block = ODEBlock(make_system(), method="rk4", options={"steps": 4}, gradient="direct")
    start = (x, torch.zeros_like(x)) if parts == 2 else x
    optimizer = SNOpt(block, lr=0.02, weight_decay=0)  # the map has no noise to overfit
    for _ in range(200):
        optimizer.zero_grad()
        end = block(start)
        loss = nn.functional.mse_loss(end[0] if parts == 2 else end, -x)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        path = block(start, times)
    return block, loss.item(), path[0] if parts == 2 else path


systems = {
    "NODE": (lambda: NODE(Force(1)), 1),
    "SONODE": (lambda: SONODE(Force(2)), 2),
    "HBNODE": (lambda: HBNODE(Force(1)), 2),
}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), sharey=True)
for (name, (make_system, parts)), axis in zip(systems.items(), axes, strict=True):
    block, loss, path = train(make_system, parts)
    axis.plot(times, path[..., 0], "C0", lw=0.8)
    axis.set(title=f"{name}: loss {loss:.1e}", xlabel="t")
    print(name, f"{loss:.1e}", learned_scalars(block))
figure.tight_layout()
