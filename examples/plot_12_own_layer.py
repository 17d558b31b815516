"""
A layer kind of your own
========================

SNOpt preconditions linear layers and convolutions. Another kind of layer needs a class of a few
lines and a row in a table. Here it is a linear layer whose weight is stored transposed, as in some
libraries.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from snopt import SNOpt
from snopt.layers.kinds import KINDS
from snopt.layers.linear import LinearLayer


class Conv1D(nn.Module):
    """y = x W + b with W of shape (in, out), as in GPT-2's code."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        """The outputs."""
        return x @ self.weight + self.bias


torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model = nn.Sequential(Conv1D(4, 16), nn.Tanh(), Conv1D(16, 3))
print(SNOpt(model).coverage())

# %%
# SNOpt does not know this layer, so its parameters get Adam's update. A layer kind says how to read
# the weight as matrices (groups, out, in), and the inputs and output gradients as rows. The rows
# here are those of ``nn.Linear``.


class Conv1DLayer(LinearLayer):
    """A transposed linear layer."""

    def matrix(self, weight):
        """(1, out, in)."""
        return weight.T.unsqueeze(0)

    def weight_of(self, matrix):
        """The inverse."""
        return matrix.squeeze(0).T


KINDS[Conv1D] = Conv1DLayer
print(SNOpt(model).coverage())

# %%
# The layer now trains as ``nn.Linear`` does. Two models start from the same weights and take 50
# steps. Cautious steps are off, because they depend on the signs of entries, and some entries are
# zero up to rounding.

twin = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
with torch.no_grad():
    for i in (0, 2):
        twin[i].weight.copy_(model[i].weight.T)
        twin[i].bias.copy_(model[i].bias)
optimizer, other = (SNOpt(net, lr=0.01, cautious=False) for net in (model, twin))
x, y = torch.randn(64, 4), torch.randint(3, (64,))
losses = {"Conv1D": [], "nn.Linear": []}
for _ in range(50):
    for rows, net, its in zip(losses.values(), (model, twin), (optimizer, other), strict=True):
        its.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        its.step()
        rows.append(loss.item())
gap = (model[0].weight.T - twin[0].weight).detach().abs().max()
print(f"largest difference of the weights: {gap:.0e}")

plt.figure(figsize=(6, 3.5))
for (name, rows), style in zip(losses.items(), ("-", "--"), strict=True):
    plt.plot(rows, style, label=name)
plt.xlabel("step")
plt.ylabel("training loss")
plt.legend()
plt.tight_layout()
