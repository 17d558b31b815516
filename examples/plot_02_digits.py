"""
Handwritten digits
==================

The data are images of 8 × 8 pixels in ten classes. The model is an encoder, an ODE block and a
linear head. SNOpt trains it and averages its weights.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from snopt import ODEBlock, SNOpt

# %%
# 1400 images are for training, the others for testing. Pixel values range from 0 to 16.

images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]


class Field(nn.Module):
    """A network of the state and the time."""

    def __init__(self, width=32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 1, 64), nn.Tanh(), nn.Linear(64, width))

    def forward(self, t, x):
        """The slope at x."""
        return self.net(torch.cat([x, t.expand(len(x), 1)], 1))


torch.manual_seed(0)
block = ODEBlock(Field(), method="dopri5", options={"steps": 1}, gradient="direct")
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), block, nn.Linear(32, 10))
optimizer = SNOpt(model, lr=0.01)
print(optimizer.coverage())

# %%
# The training loop is that of any optimizer. For an evaluation, ``optimizer.eval()`` puts the
# averages into the model, and ``optimizer.train()`` takes them out again.


@torch.no_grad()
def accuracy():
    """Share of test images that are classified correctly."""
    return float((model(images[test]).argmax(1) == labels[test]).float().mean())


rows = []
for epoch in range(8):
    for batch in train[torch.randperm(len(train))].split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    weights = accuracy()
    optimizer.eval()
    rows.append((weights, accuracy()))
    optimizer.train()
    print(f"epoch {epoch + 1}: test accuracy {weights:.1%}, of the averages {rows[-1][1]:.1%}")

plt.figure(figsize=(6, 3.5))
plt.plot(range(1, 9), rows, "o-", label=("weights", "averages"))
plt.xlabel("epoch")
plt.ylabel("test accuracy")
plt.legend()
plt.tight_layout()
