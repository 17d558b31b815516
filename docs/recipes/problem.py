"""The small model and data that the recipes share."""

import torch
from torch import nn

from snopt import ODEBlock


class Field(nn.Module):
    """x' = net(x)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, width))

    def forward(self, t, x):
        """The slope at x."""
        return self.net(x)


def make_model() -> nn.Sequential:
    """A stem, an ODE block, a head."""
    torch.manual_seed(0)
    block = ODEBlock(Field(), method="rk4", options={"steps": 2}, gradient="direct")
    return nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 3))


def make_batches(number: int = 20, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of points, labelled by the largest of their first three coordinates."""
    draw = torch.Generator().manual_seed(1)
    points = [torch.randn(size, 4, generator=draw) for _ in range(number)]
    return [(x, x[:, :3].argmax(1)) for x in points]
