"""The Neural-ODE families: what each is, one record, and the system of ODEs that it makes.

A further family is one more row, from anywhere: ``FAMILIES["mine"] = Family(MySystem)``.
Layer sizes are those of the published comparisons, so that families compete with about the same
number of parameters. Learned scalars that the released code registers without using them are left
out here; ``UNUSED`` in the tests says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh, softplus

from snopt.dynamics import (
    ANODE,
    GHBNODE,
    HBNODE,
    NODE,
    SONODE,
    AdamInitialState,
    AdamNODE,
    Augment,
    InitialState,
    NesterovNODE,
)
from tasks.common.checks import choices, require_choice

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "hardtanh": partial(hardtanh, min_val=-5.0, max_val=5.0),
    "identity": nn.Identity(),
}
PHIS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": softplus, "sigmoid": torch.sigmoid}
FUNCTIONS = {"activation": ACTIVATIONS, "phi": PHIS}
"""Settings among the scalars that name a function."""


@dataclass(frozen=True)
class Family:
    """What a family is, and its published networks.

    Attributes:
        system: makes the system of ODEs of an inner field f(t, h). Its ``parts`` are the tensors of
            its state: h; h and m; or h, m and v, where v starts at m².
        inner_parts: parts of the state that the inner field sees, side by side.
        extra: channels that start at zero, where no size is published; 0: it appends none.
        start: makes the initial state, of two or three parts, of an encoder.
        scalars: settings of ``conf/model`` that ``system`` takes; null leaves the published value.
        options: settings that are true or false, which ``start`` takes on images.
        sizes: network to (width of each part of the state, hidden width if any).
        published: network to initial scalars.
        ignores_gaps_as_published: whether the released code lets it travel one unit of time between
            any two observations: its system there leaves the elapsed time out.
    """

    system: type[nn.Module]
    inner_parts: int = 1
    extra: int = 0
    start: Callable[..., nn.Module] = InitialState
    scalars: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignores_gaps_as_published: bool = False

    @property
    def parts(self) -> int:
        """Tensors in its state."""
        return int(getattr(self.system, "parts", 1))

    @property
    def open_parts(self) -> int:
        """Those that take observations in: position and momentum."""
        return min(self.parts, 2)

    @property
    def adds_nothing(self) -> bool:
        """Whether its system is the inner field itself."""
        return self.system in (NODE, ANODE)

    def width(self, width: int) -> int:
        """Channels of each part of its state where a NODE has ``width``."""
        return width + self.extra

    def inputs(self, width: int) -> int:
        """Channels that the inner field sees of a state whose parts have ``width`` each."""
        return self.inner_parts * width

    def size(self, network: str) -> tuple[int, ...]:
        """Its published sizes in a network.

        Raises:
            ValueError: none are given.
        """
        if network not in self.sizes:
            raise ValueError(
                f"{self.system.__name__} has no sizes for the network {network!r}; give its Family "
                f"sizes={{{network!r}: (...)}}"
            )
        return self.sizes[network]

    def initial(self, encoder: Callable[[], nn.Module], extra: int, **options: bool) -> nn.Module:
        """From an input to its state: zeros appended, or a momentum beside it.

        Args:
            encoder: makes the map from the input to the further channels.
            extra: channels of zeros to append to a state of one part.
            options: settings of ``start``.
        """
        if self.parts > 1:
            return self.start(encoder(), **options)
        return Augment(extra) if extra else nn.Identity()


_MOMENTUM = {"vibration": (20,), "walker": (24,), "forced": (1,)}
_FAST = 0.9525741268224334  # sigmoid(3)

FAMILIES = {
    "node": Family(
        NODE,
        sizes={
            "points": (2, 20),
            "mnist": (1, 92),
            "cifar10": (3, 125),
            "vibration": (21,),
            "walker": (24,),
            "forced": (1,),
        },
    ),
    "anode": Family(
        ANODE,
        extra=5,  # as many as on MNIST
        sizes={
            "points": (3, 20),
            "mnist": (6, 64),
            "cifar10": (13, 64),
            "vibration": (27,),
            "walker": (24,),
            "forced": (2,),
        },
    ),
    "sonode": Family(
        SONODE,
        inner_parts=2,
        sizes={
            "points": (2, 13),
            "mnist": (5, 50),
            "cifar10": (12, 50),
            "vibration": (19,),
            "walker": (23,),
            "forced": (1,),
        },
        ignores_gaps_as_published=True,
    ),
    "hbnode": Family(
        HBNODE,
        scalars=("gamma", "timescale"),
        sizes={"points": (2, 14), "mnist": (5, 50), "cifar10": (12, 51), **_MOMENTUM},
    ),
    "ghbnode": Family(
        GHBNODE,
        scalars=("gamma", "timescale", "xi", "learn_xi", "activation"),
        sizes={"points": (2, 14), "mnist": (6, 45), "cifar10": (12, 51), **_MOMENTUM},
        published={
            "points": {"xi": 2.0, "learn_xi": False, "activation": "identity"},
            "mnist": {"xi": 2.1269280110429727},  # softplus(2)
            "cifar10": {"xi": 1.5, "learn_xi": False},
            "vibration": {"xi": 0.6931471805599453},  # softplus(0)
            "walker": {"xi": 1.3132616875182228},  # softplus(1)
            "forced": {"xi": math.log(2.0), "learn_xi": False, "activation": "hardtanh"},
        },
    ),
    "nesterovnode": Family(
        NesterovNODE,
        scalars=("start",),
        sizes={  # none for "forced": over 64 units of time no solver can follow it
            "points": (2, 14),
            "mnist": (5, 50),
            "cifar10": (12, 51),
            "vibration": (20,),
            "walker": (24,),
        },
    ),
    "adamnode": Family(
        AdamNODE,
        start=AdamInitialState,
        scalars=("beta1", "beta2", "phi"),
        options=("aligned",),
        sizes={"points": (2, 14), "mnist": (5, 50), "cifar10": (15, 31), **_MOMENTUM},
        published={"cifar10": {"beta1": _FAST, "beta2": _FAST, "phi": "sigmoid"}},
    ),
}


def find_family(family: Mapping[str, Any]) -> Family:
    """The record of a ``model`` configuration.

    Raises:
        ConfigError: no such family.
    """
    name = str(family.get("name"))
    require_choice("model", name, FAMILIES)
    return FAMILIES[name]


def build_system(
    family: Mapping[str, Any], inner: nn.Module, network: str | None = None
) -> nn.Module:
    """The system of ODEs that a family makes of an inner field.

    Args:
        family: the ``model`` configuration; its settings come before the published ones.
        inner: f(t, h); it gets :attr:`Family.inner_parts` of the state, as [h, m].
        network: whose published scalars it starts from; None: the system's defaults.

    Raises:
        ValueError: no such family, or no such function.
    """
    record = find_family(family)
    given = {key: family[key] for key in record.scalars if family.get(key) is not None}
    settings = {**record.published.get(network or "", {}), **given}
    for key, table in FUNCTIONS.items():
        if key in settings:
            if settings[key] not in table:
                raise ValueError(choices(key, settings[key], table))
            settings[key] = table[settings[key]]
    return record.system(inner, **settings)


def build_field(family: Mapping[str, Any], inner: nn.Module) -> nn.Module:
    """A family's system for a network that no comparison has published, with default scalars.

    ``node`` and ``anode`` are ``inner`` itself, so that their networks are those written for them.

    Args:
        family: the ``model`` configuration.
        inner: f(t, h) with :meth:`Family.inputs` channels in and :meth:`Family.width` out.
    """
    return inner if find_family(family).adds_nothing else build_system(family, inner)
