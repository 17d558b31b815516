"""
A pendulum, with Gauss-Newton
=============================

Trajectories of a damped pendulum are measured without noise. Fitting them is a least-squares
problem, on which Gauss-Newton needs far fewer steps than a first-order optimizer.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import snopt
from snopt import ODEBlock


class Pendulum(nn.Module):
    """Angle and velocity, with a little friction."""

    def forward(self, t, x):
        """The slope at x."""
        return torch.stack([x[:, 1], -torch.sin(x[:, 0]) - 0.1 * x[:, 1]], 1)


times = torch.linspace(0.0, 3.0, 16, dtype=torch.float64)
starts = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
with torch.no_grad():
    truth = ODEBlock(Pendulum(), rtol=1e-9, atol=1e-9)(starts, times)

# %%
# A field with 162 parameters learns the pendulum's equation of motion. ``batch_dim=1`` tells
# ``curvature_pass`` that outputs have time first.


class Field(nn.Module):
    """A small net."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x)


def make():
    """The same initial weights for both."""
    torch.manual_seed(0)
    return ODEBlock(Field(), method="rk4", options={"steps": 1}, gradient="direct").double()


block = make()
optimizer = snopt.GaussNewton(block)
ours = []
for _ in range(40):
    optimizer.zero_grad()
    states = block(starts, times)
    loss = nn.functional.mse_loss(states, truth)
    optimizer.curvature_pass(states, "gaussian", targets=truth, loss=loss, batch_dim=1)
    loss.backward()
    optimizer.step()
    ours.append(loss.item())

other = make()
adam = torch.optim.Adam(other.parameters(), lr=0.01)
theirs = []
for _ in range(40):
    adam.zero_grad()
    loss = nn.functional.mse_loss(other(starts, times), truth)
    loss.backward()
    adam.step()
    theirs.append(loss.item())

print(f"after 40 steps: Gauss-Newton {ours[-1]:.1e}, Adam {theirs[-1]:.1e}")

# %%
# This is one seed, with one learning rate for Adam, and a Gauss-Newton step costs more than a step
# of Adam. But the gap is wide.

with torch.no_grad():
    long = torch.linspace(0.0, 12.0, 120, dtype=torch.float64)
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    exact = ODEBlock(Pendulum(), rtol=1e-9, atol=1e-9)(start, long)
    forecast = block(start, long)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.semilogy(ours, label="Gauss-Newton")
left.semilogy(theirs, label="Adam")
left.set(xlabel="step", ylabel="mean squared error")
left.legend()
right.plot(long, exact[:, 0, 0], "k", label="pendulum")
right.plot(long, forecast[:, 0, 0], "--", label="forecast from a new start")
right.axvline(3.0, color="gray", lw=0.8)
right.set(xlabel="time", ylabel="angle")
right.legend()
figure.tight_layout()
