"""Every sample takes steps of its own, with torchode: pip install torchode."""

import torch
from problem import make_batches
from torch import nn
from torch.nn.functional import cross_entropy

from snopt import ODEBlock, SNOpt
from snopt.ode.methods import Torchode


class Field(nn.Module):
    """As torchode calls it: t of shape (N,), a time for each sample."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 1, 16), nn.Tanh(), nn.Linear(16, width))

    def forward(self, t, x):
        """The slope at (t, x)."""
        return self.net(torch.cat([x, t[:, None]], dim=1))


torch.manual_seed(0)
block = ODEBlock(Field(), method=Torchode("tsit5"), rtol=1e-3, atol=1e-3, gradient="checkpoint")
model = nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 3))
optimizer = SNOpt(model, lr=0.03)

losses = []
for x, y in make_batches():
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
