"""
A layer kind of your own
========================

SNOpt preconditions linear layers and convolutions. Another layer joins in with a class of a few
lines and one row in a table. Here: a linear layer whose weight is stored the other way round, as
some libraries do.
"""

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


torch.manual_seed(0)
model = nn.Sequential(Conv1D(4, 16), nn.Tanh(), Conv1D(16, 3))
print(SNOpt(model).coverage())

# %%
# It is not known, and takes Adam's update. A kind says how the weight reads as a matrix of (groups,
# out, in), and how inputs and cotangents read as rows. Rows are those of ``nn.Linear``.


class Conv1DLayer(LinearLayer):
    """A transposed linear layer."""

    def matrix(self, weight):
        """(1, out, in)."""
        return weight.T.unsqueeze(0)

    def weight_of(self, matrix):
        """The inverse."""
        return matrix.squeeze(0).T


KINDS[Conv1D] = Conv1DLayer
optimizer = SNOpt(model, lr=0.01, basis="curvature")
print(optimizer.coverage())

# %%
# Does it do the same as ``nn.Linear``? Two models with the same weights, ten steps each:

twin = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
with torch.no_grad():
    for i in (0, 2):
        twin[i].weight.copy_(model[i].weight.T)
        twin[i].bias.copy_(model[i].bias)
other = SNOpt(twin, lr=0.01, basis="curvature")
x, y = torch.randn(64, 4), torch.randint(3, (64,))
for _ in range(10):
    for net, its in ((model, optimizer), (twin, other)):
        its.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        its.step()
gap = (model[0].weight.T - twin[0].weight).detach().abs().max()
print("largest difference of the weights:", float(gap))
