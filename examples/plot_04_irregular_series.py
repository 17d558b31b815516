"""
An irregular series: an ODE-RNN
===============================

Each series is a sine wave of one of two frequencies, observed at random times. The task is to tell
the frequencies apart. A GRU cell takes in an observation, and an ODE block carries the state on to
the next one. The gaps between observations differ from series to series. So the block runs over a
unit interval, and the field is multiplied by each series' own gap.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from snopt import ODEBlock, SNOpt

draw = torch.Generator().manual_seed(0)
times = (6 * torch.rand(300, 20, generator=draw)).sort(1).values
slow = torch.arange(300) % 2
phase = 6.3 * torch.rand(300, 1, generator=draw)
values = torch.sin(times * (1.0 + 0.5 * slow[:, None]) + phase)
values += 0.1 * torch.randn(300, 20, generator=draw)


class Between(nn.Module):
    """dh/ds = gap · f(h) over s in (0, 1): a different interval for every sample, in one solve."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width), nn.Tanh())

    def forward(self, s, state):
        """The slope of the state; the gap stays."""
        h, gap = state
        return gap * self.net(h), torch.zeros_like(gap)


class Classifier(nn.Module):
    """A small ODE-RNN (Rubanova, Chen and Duvenaud 2019)."""

    def __init__(self, width=16):
        super().__init__()
        self.cell = nn.GRUCell(1, width)
        self.block = ODEBlock(Between(width), method="rk4", options={"steps": 1}, gradient="direct")
        self.head = nn.Linear(width, 2)
        self.width = width

    def forward(self, times, values):
        """Logits of every series."""
        h = values.new_zeros(len(values), self.width)
        gaps = torch.diff(times, dim=1, prepend=times[:, :1])
        for i in range(values.shape[1]):
            h, _ = self.block((h, gaps[:, i : i + 1]))
            h = self.cell(values[:, i : i + 1], h)
        return self.head(h)


# %%
# The block is called twenty times in one forward pass. Its curvature adds up over the calls.

torch.manual_seed(0)
model = Classifier()
optimizer = SNOpt(model, lr=0.01)
losses, accuracies = [], []
for _ in range(20):
    for rows in torch.randperm(200).split(50):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(times[rows], values[rows]), slow[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = model(times[200:], values[200:]).argmax(1) == slow[200:]
    accuracies.append(float(right.float().mean()))
print(f"accuracy on 100 new series: {accuracies[-1]:.0%}")
print(optimizer.coverage())

# %%
# The GRU's weights take Adam's update, and ``coverage()`` says so.

figure, (left, middle) = plt.subplots(1, 2, figsize=(9, 3.5))
for i in (0, 1):
    left.plot(times[i], values[i], "o-", label=f"class {i}")
left.set(xlabel="time", ylabel="observation")
left.legend()
middle.plot(accuracies)
middle.set(xlabel="epoch", ylabel="accuracy, new series")
figure.tight_layout()
