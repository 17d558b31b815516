"""Families driven by a measured input: fields that read it while they are solved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import Constant, FirstPart
from tasks.common.checks import choices
from tasks.models.families import build_field, build_system, find_family
from tasks.models.family_nets import Mlp

FORCINGS = ("interpolated", "ramp_as_published")


class ForcedLinear(nn.Module):
    """f(t, z) = W [z, u(t)] + b with a measured input u.

    Args:
        inputs: width of z.
        outputs: width of the derivative.
        forcing: ``interpolated``: u is linear between its unit-spaced samples.
            ``ramp_as_published``: the released code, which stops at the second interval and
            extrapolates it as a ramp.

    Attributes:
        samples: u at t = 0, 1, ..., shape (N, T); set before a solve and kept for its backward
            pass.
    """

    def __init__(self, inputs: int, outputs: int, forcing: str = "interpolated") -> None:
        super().__init__()
        if forcing not in FORCINGS:
            raise ValueError(choices("forcing", forcing, FORCINGS))
        self.linear = nn.Linear(inputs + 1, outputs)
        self.forcing = forcing
        self.samples: Tensor | None = None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The derivative at time ``t``."""
        derivative: Tensor = self.linear(torch.cat([z, self.input_at(t)], dim=1))
        return derivative

    def input_at(self, t: Tensor) -> Tensor:
        """u(t), shape (N, 1)."""
        if self.samples is None:
            raise RuntimeError("no input: set samples before the solve.")
        last = 1 if self.forcing == "ramp_as_published" else self.samples.shape[1] - 2
        left = min(max(math.floor(float(t)), 0), last)
        start, end = self.samples[:, left], self.samples[:, left + 1]
        return (start + (t - left) * (end - start)).unsqueeze(1)


class ForcedNet(nn.Module):
    """A family with a linear field, followed over unit-spaced times.

    Args:
        family: the ``model`` configuration.
        forcing: see :class:`ForcedLinear`.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Source: Xia et al. 2021 and Cho et al. 2022, the Silverbox initialisation study.
    """

    def __init__(
        self,
        family: Mapping[str, Any],
        *,
        forcing: str = "interpolated",
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        record = find_family(family)
        (width,) = record.size("forced")
        self.field = ForcedLinear(record.inputs(width), width, forcing)
        self.start = record.initial(partial(Constant, 2 * width - 1), width - 1)
        self.block = ODEBlock(build_system(family, self.field, "forced"), (0.0, 1.0), **solver)

    def forward(
        self, forcing: Float[Tensor, "n t"], first: Float[Tensor, " n"]
    ) -> Float[Tensor, "n t 2"]:
        """The first component of h, and the norm of the whole state, at every time.

        Args:
            forcing: measured input at t = 0, 1, ...
            first: measured output at t = 0.
        """
        self.field.samples = forcing
        times = torch.arange(forcing.shape[1], dtype=torch.float64)
        states = self.block(self.start(first.unsqueeze(1)), times)
        joined = states if isinstance(states, Tensor) else torch.cat(states, dim=2)
        return torch.stack([joined[..., 0], joined.norm(dim=2)], dim=2).transpose(0, 1)


class DrivenField(nn.Module):
    """f(t, z) = net([z, u(t)]) with a measured input u, a cubic between its unit-spaced samples.

    The cubic has the samples' values and the slopes of their central differences (Catmull-Rom); a
    band-limited input loses far less by it than by straight lines.

    Args:
        net: from state and input to the derivative.

    Attributes:
        samples: u at t = 0, 1, ..., shape (N, T); set before a solve and kept for its backward
            pass.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.samples: Tensor | None = None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The derivative at time ``t``."""
        derivative: Tensor = self.net(torch.cat([z, self.input_at(float(t)).unsqueeze(1)], dim=1))
        return derivative

    def input_at(self, t: float) -> Tensor:
        """u(t), shape (N,)."""
        if self.samples is None:
            raise RuntimeError("no input: set samples before the solve.")
        last = self.samples.shape[1] - 1
        left = min(max(math.floor(t), 0), last - 1)
        x = t - left
        before, here, there, after = (
            self.samples[:, min(max(left + k, 0), last)] for k in (-1, 0, 1, 2)
        )
        bend = 2.0 * before - 5.0 * here + 4.0 * there - after
        twist = 3.0 * (here - there) + after - before
        return here + 0.5 * x * (there - before + x * (bend + x * twist))


class DrivenNet(nn.Module):
    """An MLP of a small state and the input, followed over unit-spaced times from a told state.

    Args:
        told: width of what the initial state is a linear map of.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        family: the ``model`` configuration.
        solver: keyword arguments of :class:`snopt.ODEBlock`.
        width: of the state.
        outputs: how many are read of state and input by a linear map, from a field that is zero at
            first; None: the output is the state's first entry.

    Raises:
        ValueError: no such family.
    """

    def __init__(
        self,
        told: int,
        *,
        hidden: int,
        layers: int,
        family: Mapping[str, Any],
        solver: Mapping[str, Any],
        width: int = 2,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        record = find_family(family)
        wide = record.width(width)
        net = Mlp([record.inputs(wide) + 1, *[hidden] * layers, wide], nn.Tanh)
        self.field = DrivenField(net)
        self.told = nn.Linear(told, width)
        self.initial = record.initial(partial(nn.Linear, width, 2 * wide - width), wide - width)
        self.block = ODEBlock(build_field(family, self.field), (0.0, 1.0), **solver)
        self.first = FirstPart()
        self.read = None if outputs is None else nn.Linear(wide + 1, outputs)
        if self.read is not None:  # a large state that moves at random would not fit long windows
            for p in net[-1].parameters():
                nn.init.zeros_(p)

    def forward(
        self, past: Float[Tensor, "n told"], forcing: Float[Tensor, "n t"]
    ) -> Float[Tensor, "n s k"]:
        """Outputs at times 1, 2, ..., one for each sample of the input but the first.

        Args:
            past: what is known at time 0.
            forcing: measured input at t = 0, 1, ...
        """
        self.field.samples = forcing
        times = torch.arange(forcing.shape[1], dtype=torch.float64)
        states: Tensor = self.first(self.block(self.initial(self.told(past)), times))
        after = states[1:].transpose(0, 1)
        if self.read is None:
            return after[..., :1]
        found: Tensor = self.read(torch.cat([after, forcing[:, 1:].unsqueeze(2)], dim=2))
        return found
