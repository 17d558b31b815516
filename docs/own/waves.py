"""A task of your own: which of two frequencies a short series has."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from snopt import ODEBlock
from tasks.task import Splits, Task


class Field(nn.Module):
    """x' = net(x)."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width), nn.Tanh())

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x)


class Waves(Task):
    """Data, model, loss and metrics; ``run.py`` does the rest."""

    metric, higher_is_better = "accuracy", True
    likelihood = "categorical"  # what rule="gauss_newton" needs to know about the loss
    provenance = "synthetic"  # the report prints it beside every number

    def __init__(self, *, width, batch_size, eval_batch_size):
        self.name = "waves"
        self.width, self.batch_size, self.eval_batch_size = width, batch_size, eval_batch_size

    def load(self, root, seed, device, dtype):
        """Tensors of three splits, sample first. `root` is `data.root`, where files are."""
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(900) % 2
        phase = 6.3 * torch.rand(900, 1, generator=draw)
        x = torch.sin(torch.linspace(0, 6, 20) * (1.0 + 0.5 * labels[:, None]) + phase)
        x = (x + 0.3 * torch.randn(x.shape, generator=draw)).to(device, dtype)
        y = labels.to(device)
        return Splits(*((x[a:b], y[a:b]) for a, b in ((0, 500), (500, 700), (700, 900))))

    def build_model(self, family, solver):
        """`solver` holds the arguments of the ODE block, as `solver=...` says."""
        if family["name"] != "node":  # or build what `model=...` asks for
            raise ValueError("task waves has no other model than model=node")
        block = ODEBlock(Field(self.width), (0.0, 1.0), **solver)
        return nn.Sequential(nn.Linear(20, self.width), block, nn.Linear(self.width, 2))

    def forward(self, model, batch, noise):
        """The model's outputs."""
        return model(batch[0])

    def loss(self, outputs, batch):
        """The mean over the batch."""
        return cross_entropy(outputs, batch[1])

    def measure(self, outputs, batch):
        """A number for each sample; "loss" and the metric at least."""
        right = outputs.argmax(1) == batch[1]
        return {"loss": cross_entropy(outputs, batch[1], reduction="none"), "accuracy": right}
