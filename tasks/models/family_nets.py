"""The families' own networks on images and on points of the plane, with their published sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import FirstPart
from tasks.common.checks import choices
from tasks.models.families import Family, build_system, find_family

IMAGES = {"mnist": (1, 28), "cifar10": (3, 32)}
"""Channels of the images, and their height and width."""


class Mlp(nn.Sequential):
    """Linear layers with an activation between them.

    Args:
        widths: width of the input and of every layer's output.
        activation: makes the module between two layers.
    """

    def __init__(self, widths: list[int], activation: Callable[[], nn.Module]) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), activation()]
        super().__init__(*layers[:-1])


class Autonomous(nn.Module):
    """A field that does not depend on time.

    Args:
        net: from the state to its derivative.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The derivative at ``x``."""
        derivative: Tensor = self.net(x)
        return derivative


class TimedConvField(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 with ReLU between, each on its input and the time as a channel.

    Args:
        inputs: channels of the state that it sees.
        hidden: channels inside.
        outputs: channels of the derivative.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs + 1, hidden, 1)
        self.conv2 = nn.Conv2d(hidden + 1, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden + 1, outputs, 1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The derivative at time ``t``, a scalar tensor."""
        time = t.to(x.dtype).expand(len(x), 1, *x.shape[2:])
        x = torch.relu(self.conv1(torch.cat([time, x], dim=1)))
        x = torch.relu(self.conv2(torch.cat([time, x], dim=1)))
        derivative: Tensor = self.conv3(torch.cat([time, x], dim=1))
        return derivative


class FamilyConvNet(nn.Sequential):
    """The families' own network on images: encoder, ODE at full resolution, linear head on h.

    Args:
        dataset: a key of :data:`IMAGES`.
        family: the ``model`` configuration; ``aligned: true`` cuts AdamNODE's initial state where
            its parts' names say, ``false`` (the default, for the published number of parameters)
            as the released code does.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Raises:
        ValueError: no such data set or family.

    Source: Dupont, Doucet and Teh 2019 (field); Xia et al. 2021 (encoder and sizes); Cho et al.
    2022 (AdamNODE).
    """

    def __init__(self, dataset: str, family: Mapping[str, Any], solver: Mapping[str, Any]) -> None:
        if dataset not in IMAGES:
            raise ValueError(choices("dataset", dataset, IMAGES))
        record, (channels, side) = find_family(family), IMAGES[dataset]
        width, hidden = record.size(dataset)
        options = {key: bool(family.get(key)) for key in record.options}
        inner = TimedConvField(record.inputs(width), hidden, width)
        super().__init__(
            _image_state(record, channels, width, hidden, options),
            ODEBlock(build_system(family, inner, dataset), (0.0, 1.0), **solver),
            FirstPart(),
            nn.Flatten(),
            nn.Linear(width * side**2, 10),
        )


def _image_state(
    record: Family, channels: int, width: int, hidden: int, options: Mapping[str, bool]
) -> nn.Module:
    """From an image to the initial state."""
    aligned = options.get("aligned", True)
    further = 2 * width - channels if aligned else (record.parts * width - channels) // 2

    def encoder() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LeakyReLU(0.3),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.3),
            nn.Conv2d(hidden, further, 1),
        )

    return record.initial(encoder, width - channels, **options)


class PointNet(nn.Sequential):
    """The families' network on points of the plane: one number in [-1, 1] for each.

    Args:
        family: the ``model`` configuration.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Raises:
        ValueError: no such family.

    Source: Xia et al. 2021, the released notebook; AdamNODE's sizes are HBNODE's.
    """

    def __init__(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> None:
        record = find_family(family)
        width, hidden = record.size("points")
        inner = Autonomous(Mlp([record.inputs(width), hidden, hidden, width], nn.ELU))

        def encoder() -> nn.Module:
            widths = [2, hidden, hidden, 2 * width - 2]
            return Mlp(widths, lambda: nn.Hardtanh(-5.0, 5.0))

        super().__init__(
            record.initial(encoder, width - 2),
            ODEBlock(build_system(family, inner, "points"), (0.0, 1.0), **solver),
            FirstPart(),
            nn.Linear(width, 1),
            nn.Hardtanh(-1.0, 1.0),
        )
