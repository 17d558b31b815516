"""A field fitted to trajectories: from an initial state to the states at given times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import FirstPart
from tasks.models.families import build_field, find_family
from tasks.models.family_nets import Autonomous, Mlp


class TrajectoryNet(nn.Module):
    """The flow of an autonomous MLP, of any family.

    The state of NODE is the data's; ANODE appends zeros; the others begin with a momentum that is
    a linear map of the data.

    Args:
        dims: width D of the data's state.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        family: the ``model`` configuration.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Raises:
        ValueError: no such family.
    """

    def __init__(
        self,
        dims: int,
        *,
        hidden: int,
        layers: int,
        family: Mapping[str, Any],
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        record = find_family(family)
        width = record.width(dims)
        inner = Autonomous(Mlp([record.inputs(width), *[hidden] * layers, width], nn.Tanh))
        self.dims = dims
        self.initial = record.initial(lambda: nn.Linear(dims, 2 * width - dims), width - dims)
        self.block = ODEBlock(build_field(family, inner), (0.0, 1.0), **solver)
        self.first = FirstPart()

    def forward(
        self, start: Float[Tensor, "n d"], times: Float[Tensor, "n steps"]
    ) -> Float[Tensor, "n steps d"]:
        """States at times after the start, each sample's own.

        One solve goes through the times of all samples, and each sample reads its own.
        """
        grid, place = torch.unique(times, return_inverse=True)
        grid = torch.cat([grid.new_zeros(1), grid])
        trajectory = self.first(self.block(self.initial(start), grid))
        sample = torch.arange(len(start), device=start.device).unsqueeze(1)
        states: Tensor = trajectory[place + 1, sample, : self.dims]
        return states


class ShootingNet(TrajectoryNet):
    """Multiple shooting: the same flow from starts that are learned.

    A start is what was measured there plus a correction, a parameter that is zero at first.

    Args:
        starts: measured starts of all training segments, shape (N, D).
        weight: of a gap between segments; gaps are scaled by its root.
        **arguments: of :class:`TrajectoryNet`.

    Source: Bock and Plitt, "A multiple shooting algorithm for direct solution of optimal control
    problems", IFAC Proceedings 17(2), 1984.
    """

    measured: Tensor

    def __init__(
        self, starts: Float[Tensor, "segments d"], weight: float, **arguments: Any
    ) -> None:
        super().__init__(starts.shape[1], **arguments)
        self.register_buffer("measured", starts.clone(), persistent=False)
        self.weight = weight
        self.corrections = nn.Parameter(torch.zeros_like(starts))

    def forward(
        self,
        start: Float[Tensor, "n d"],
        times: Float[Tensor, "n steps"],
        index: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n rows d"]:
        """States at times after the start; with an index from learned starts, and with gaps.

        Args:
            start: initial states; not used with an index.
            times: of each segment; with an index, the first is 0, the start's own.
            index: of the segments among those to train on.

        Returns:
            The states at these times. With an index, one row more: from the start of the segment
            with the next index to the last state.
        """
        if index is None:
            return super().forward(start, times)
        starts = self.measured + self.corrections
        start, following = starts[index], starts[(index + 1).clamp_max(len(starts) - 1)]
        after = super().forward(start, times[:, 1:])
        gaps = math.sqrt(self.weight) * (after[:, -1] - following)
        return torch.cat([start.unsqueeze(1), after, gaps.unsqueeze(1)], dim=1)
