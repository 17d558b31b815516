"""The image classifier of the paper: a convolutional stem, an ODE block, a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import FirstPart
from tasks.models.families import build_field, find_family


class ConvField(nn.Module):
    """The field F(t, x): two 3x3 convolutions, each on x with the time as one more channel.

    Args:
        channels: channels of the velocity.
        inputs: channels of x; as many by default.
    """

    def __init__(self, channels: int, inputs: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d((inputs or channels) + 1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Float[Tensor, "n s h w"]) -> Float[Tensor, "n c h w"]:
        """The velocity at time ``t``, a scalar tensor."""
        time = t.to(x.dtype).expand(x.shape[0], 1, x.shape[2], x.shape[3])
        hidden = torch.relu(self.conv1(torch.cat([time, x], dim=1)))
        velocity: Tensor = self.conv2(torch.cat([time, hidden], dim=1))
        return velocity


class ConvNet(nn.Module):
    """Convolutions down to a small map, an ODE over it, average pooling and a linear layer.

    A 3x3 convolution without padding is followed by ``strided`` 4x4 convolutions of stride 2, with
    ReLU between them. The paper's net has two; 8x8 images have room for one. The map is a NODE's
    state, and the position of the other families; ANODE appends channels of zeros to it, and a 1x1
    convolution of it is the momentum.

    Args:
        channels: channels of the images.
        hidden: channels of every layer and of the ODE's state.
        classes: number of classes.
        pool: side of the map after the stem; the map is averaged as a whole.
        strided: number of strided convolutions.
        family: the ``model`` configuration; NODE by default.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Attributes:
        stem: convolutions that make x(0).
        start: x(0) to the family's state.
        block: the ODE, over [0, 1]; ``block.field`` is its field.
        head: x(1) to logits.

    Raises:
        ValueError: no such family.

    Source: Liu et al., Second-Order Neural ODE Optimizer, 2021, section 4.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        classes: int,
        *,
        pool: int = 6,
        strided: int = 2,
        family: Mapping[str, Any] = MappingProxyType({"name": "node"}),
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 3, bias=False)]
        for _ in range(strided):
            layers += [nn.ReLU(), nn.Conv2d(hidden, hidden, 4, stride=2, padding=1, bias=False)]
        self.stem = nn.Sequential(*layers)
        record = find_family(family)
        width = record.width(hidden)
        self.start = record.initial(partial(nn.Conv2d, hidden, 2 * width - hidden, 1), record.extra)
        field = build_field(family, ConvField(width, record.inputs(width)))
        self.block = ODEBlock(field, (0.0, 1.0), **solver)
        self.position = FirstPart()
        self.head = nn.Sequential(
            nn.ReLU(), nn.AvgPool2d(pool), nn.Flatten(), nn.Linear(width, classes)
        )

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of standardised images."""
        logits: Tensor = self.head(self.position(self.block(self.start(self.stem(images)))))
        return logits
