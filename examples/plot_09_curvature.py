"""
What the curvature looks like
=============================

SNOpt keeps two matrices for each layer: A, the second moments of its inputs, and B, those of the
gradients at its outputs. Their spectra show how much the curvature differs between directions.
``kronecker_error`` measures how well A ⊗ B approximates the layer's exact Gauss-Newton matrix.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import snopt
from snopt import ODEBlock, SNOpt


class Field(nn.Module):
    """A small net."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x)


torch.manual_seed(0)
block = ODEBlock(Field(), gradient="direct")
model = nn.Sequential(nn.Linear(4, 6), block, nn.Linear(6, 3))
x, y = torch.randn(64, 4), torch.randint(3, (64,))

# %%
# With ``basis="curvature"``, A and B are gathered during the backward solve. By default they are
# running averages of Gᵀ G and G Gᵀ, where G is the gradient of the layer's weight.

optimizer = SNOpt(model, lr=0.01, basis="curvature", refresh_every=1)
for _ in range(20):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
for name, factors in optimizer.factors().items():
    for axis, matrix, side in zip(axes, factors, ("A: inputs", "B: cotangents"), strict=True):
        values = torch.linalg.eigvalsh(matrix.double()).flip(0).clamp(min=1e-12)
        axis.semilogy(values, ".-", label=name)
        axis.set(title=side, xlabel="index", ylabel="eigenvalue")
axes[0].legend(fontsize=8)
figure.tight_layout()

# %%
# The largest eigenvalue is many times the smallest, so no single learning rate suits all
# directions.
#
# How good is the approximation? It is exact if the error is 0. A cosine near 1 means that most of
# the error is in the scale.

print(snopt.kronecker_error(model, (x[:8], y[:8]), nn.functional.cross_entropy))
