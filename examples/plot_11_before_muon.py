"""
The preconditioner before another optimizer
===========================================

``SNOptPreconditioner`` replaces gradients with preconditioned ones. Another optimizer turns them
into a step, for example SGD with momentum, or Muon, which orthogonalises the update of each matrix.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from snopt import SNOptPreconditioner

images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16


def train(name, lr, precondition, steps=150):
    """The losses of a network without biases, since torch's Muon takes matrices only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 10, bias=False))
    kind = getattr(torch.optim, name)
    optimizer = kind(model.parameters(), lr=lr, momentum=0.9)
    before = (
        SNOptPreconditioner(model, rule="kfac", refresh_every=5, damping=0.01)
        if precondition
        else None
    )
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        if before is not None:
            before.step()  # the gradients are directions now
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
# Each gets the best of eight learning rates, by the mean loss of the last 30 steps. It is one seed,
# and the loss is that of training batches: this shows how to combine the two, not that it pays off.


def smooth(losses):
    """Means of ten steps."""
    return torch.tensor(losses).view(-1, 10).mean(1)


RATES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
for name in ("SGD", "Muon"):
    for precondition in (False, True):
        runs = {lr: smooth(train(name, lr, precondition)) for lr in RATES}
        best = min(runs, key=lambda lr: float(runs[lr][-3:].mean().nan_to_num(nan=float("inf"))))
        label = f"{'K-FAC, then ' if precondition else ''}{name}, lr {best}"
        print(f"{label:28} loss of the last 30 steps {float(runs[best][-3:].mean()):.3f}")
        plt.semilogy(range(5, 155, 10), runs[best], "--" if precondition else "-", label=label)
plt.xlabel("step")
plt.ylabel("training loss")
plt.legend()
plt.tight_layout()
