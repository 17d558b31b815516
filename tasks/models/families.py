"""The Neural-ODE families: which system a name stands for, and their published networks.

Layer sizes are those of the published comparisons, so that families compete with about the same
number of parameters. Learned scalars that the released code registers without using them are left
out here; ``UNUSED`` in the tests says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh, softplus

from snopt import ODEBlock
from snopt.dynamics import (
    ANODE,
    GHBNODE,
    HBNODE,
    NODE,
    SONODE,
    AdamInitialState,
    AdamNODE,
    Augment,
    FirstPart,
    InitialState,
)
from tasks.common.checks import choices

SYSTEMS: dict[str, type[nn.Module]] = {
    "node": NODE,
    "anode": ANODE,
    "sonode": SONODE,
    "hbnode": HBNODE,
    "ghbnode": GHBNODE,
    "adamnode": AdamNODE,
}
PARTS = {"node": 1, "anode": 1, "sonode": 2, "hbnode": 2, "ghbnode": 2, "adamnode": 3}
"""Tensors in each family's state."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "hardtanh": partial(hardtanh, min_val=-5.0, max_val=5.0),
    "identity": nn.Identity(),
}
PHIS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": softplus, "sigmoid": torch.sigmoid}
SCALARS = {
    "hbnode": ("gamma", "timescale"),
    "ghbnode": ("gamma", "timescale", "xi", "learn_xi", "activation"),
    "adamnode": ("beta1", "beta2", "phi"),
}
"""Settings of ``conf/model`` that each family takes; null leaves the task's published value."""

OPTIONS = {"adamnode": ("aligned",)}
"""Those that are true or false and shape the network, by family."""
FUNCTIONS = ("activation", "phi")
"""Settings among the scalars that name a function."""

EXTRA = 5
"""Channels that ANODE appends where nothing is published, as many as on MNIST."""


def family_name(family: Mapping[str, Any]) -> str:
    """The family's name.

    Raises:
        ValueError: no such family.
    """
    name = str(family.get("name"))
    if name not in SYSTEMS:
        raise ValueError(choices("model", name, SYSTEMS))
    return name


def build_system(
    family: Mapping[str, Any], inner: nn.Module, published: Mapping[str, Mapping[str, Any]]
) -> nn.Module:
    """The system of ODEs that a family makes of an inner field.

    Args:
        family: the ``model`` configuration; its settings come before the published ones.
        inner: f(t, h); for ``sonode`` it gets [h, m].
        published: a task's initial scalars, by family name.
    """
    name = family_name(family)
    given = {key: family[key] for key in SCALARS.get(name, ()) if family.get(key) is not None}
    settings = {**published.get(name, {}), **given}
    for key, table in (("activation", ACTIVATIONS), ("phi", PHIS)):
        if key in settings:
            if settings[key] not in table:
                raise ValueError(choices(key, settings[key], table))
            settings[key] = table[settings[key]]
    return SYSTEMS[name](inner, **settings)


def build_field(family: Mapping[str, Any], inner: nn.Module) -> nn.Module:
    """A family's system for a network that no comparison has published, with default scalars.

    ``node`` and ``anode`` are ``inner`` itself, so that their networks are those written for them.

    Args:
        family: the ``model`` configuration.
        inner: f(t, h) with :func:`field_inputs` channels in and :func:`state_width` out.
    """
    return inner if PARTS[family_name(family)] == 1 else build_system(family, inner, {})


def state_width(name: str, width: int) -> int:
    """Channels of each part of a family's state where a NODE has ``width``."""
    return width + EXTRA if name == "anode" else width


def field_inputs(name: str, width: int) -> int:
    """Channels that the inner field sees of a state whose parts have ``width`` each."""
    return 2 * width if name == "sonode" else width


def initial_state(name: str, encoder: Callable[[], nn.Module]) -> nn.Module:
    """From a NODE's state to the family's: zeros appended, or a momentum beside it.

    Args:
        name: the family.
        encoder: makes the map from the state to a momentum of the same shape; v = m².
    """
    if name == "node":
        return nn.Identity()
    if name == "anode":
        return Augment(EXTRA)
    return AdamInitialState(encoder()) if name == "adamnode" else InitialState(encoder())


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


@dataclass(frozen=True)
class ConvSizes:
    """Sizes of the families' convolutional networks on one kind of image.

    Attributes:
        channels: channels of the images.
        side: height and width of the images.
        widths: family to (channels of the state's parts, hidden channels).
        published: initial scalars by family.
    """

    channels: int
    side: int
    widths: Mapping[str, tuple[int, int]]
    published: Mapping[str, Mapping[str, Any]]


_FAST = 0.9525741268224334  # sigmoid(3)
CONV_SIZES = {
    "mnist": ConvSizes(
        1,
        28,
        {
            "node": (1, 92),
            "anode": (6, 64),
            "sonode": (5, 50),
            "hbnode": (5, 50),
            "ghbnode": (6, 45),
            "adamnode": (5, 50),
        },
        {"ghbnode": {"xi": 2.1269280110429727}},  # softplus(2)
    ),
    "cifar10": ConvSizes(
        3,
        32,
        {
            "node": (3, 125),
            "anode": (13, 64),
            "sonode": (12, 50),
            "hbnode": (12, 51),
            "ghbnode": (12, 51),
            "adamnode": (15, 31),
        },
        {
            "ghbnode": {"xi": 1.5, "learn_xi": False},
            "adamnode": {"beta1": _FAST, "beta2": _FAST, "phi": "sigmoid"},
        },
    ),
}


class FamilyConvNet(nn.Sequential):
    """The families' own network on images: encoder, ODE at full resolution, linear head on h.

    Args:
        dataset: a key of :data:`CONV_SIZES`.
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
        if dataset not in CONV_SIZES:
            raise ValueError(choices("dataset", dataset, CONV_SIZES))
        name, sizes = family_name(family), CONV_SIZES[dataset]
        width, hidden = sizes.widths[name]
        seen = 2 * width if name == "sonode" else width
        inner = TimedConvField(seen, hidden, width)
        super().__init__(
            _image_state(name, sizes.channels, width, hidden, bool(family.get("aligned"))),
            ODEBlock(build_system(family, inner, sizes.published), (0.0, 1.0), **solver),
            FirstPart(),
            nn.Flatten(),
            nn.Linear(width * sizes.side**2, 10),
        )


def _image_state(name: str, channels: int, width: int, hidden: int, aligned: bool) -> nn.Module:
    """From an image to the initial state."""
    if PARTS[name] == 1:
        return Augment(width - channels)
    further = 2 * width - channels
    if name == "adamnode" and not aligned:
        further = (3 * width - channels) // 2
    encoder = nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.LeakyReLU(0.3),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.LeakyReLU(0.3),
        nn.Conv2d(hidden, further, 1),
    )
    if name == "adamnode":
        return AdamInitialState(encoder, aligned=aligned)
    return InitialState(encoder)


POINT_SIZES = {"node": 20, "anode": 20, "sonode": 13, "hbnode": 14, "ghbnode": 14, "adamnode": 14}
POINT_SCALARS = {"ghbnode": {"xi": 2.0, "learn_xi": False, "activation": "identity"}}


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
        name = family_name(family)
        hidden, width = POINT_SIZES[name], 3 if name == "anode" else 2
        seen = 2 * width if name == "sonode" else width
        inner = Autonomous(Mlp([seen, hidden, hidden, width], nn.ELU))
        start: nn.Module
        if PARTS[name] == 1:
            start = Augment(width - 2)
        else:
            encoder = Mlp([2, hidden, hidden, 2], lambda: nn.Hardtanh(-5.0, 5.0))
            start = AdamInitialState(encoder) if name == "adamnode" else InitialState(encoder)
        super().__init__(
            start,
            ODEBlock(build_system(family, inner, POINT_SCALARS), (0.0, 1.0), **solver),
            FirstPart(),
            nn.Linear(width, 1),
            nn.Hardtanh(-1.0, 1.0),
        )
