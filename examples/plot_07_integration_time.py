"""
The integration time as a parameter
===================================

``Horizon`` trains the length T of the integration interval, with a penalty (c/2) T². Here T starts
at three different values. The task is to classify two noisy half-moons.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn

from snopt import Horizon, ODEBlock, SNOpt

points, labels = make_moons(400, noise=0.1, random_state=0)
points, labels = torch.as_tensor(points).float(), torch.as_tensor(labels)


class Field(nn.Module):
    """A network that ends in tanh, so its speed is bounded."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4), nn.Tanh())

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x)


def train(length, steps=200):
    """Train with this initial T."""
    torch.manual_seed(0)
    block = ODEBlock(Field(), (0.0, length), gradient="direct", options={"warm_start": True})
    model = nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2))
    optimizer = SNOpt(model, lr=0.01)
    horizon = Horizon(block, optimizer, "feedback", every=5, penalty=0.01, max_change=0.05)
    losses = []
    for _ in range(steps):  # nothing to call for the horizon
        batch = torch.randint(400, (100,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(points[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return horizon.trace, losses, block.nfe_forward / steps


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
for length in (0.3, 1.0, 2.0):
    trace, losses, evaluations = train(length)
    left.plot([u.step for u in trace], [u.T for u in trace], label=f"T = {length} at first")
    right.semilogy(losses, alpha=0.7)
    print(f"T {length} -> {trace[-1].T:.2f}: loss {sum(losses[-20:]) / 20:.3f}, ", end="")
    print(f"{evaluations:.1f} evaluations a step")
left.set(xlabel="step", ylabel="T")
left.legend()
right.set(xlabel="step", ylabel="loss")
figure.tight_layout()
