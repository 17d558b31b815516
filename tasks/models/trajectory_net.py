"""A field fitted to trajectories: from an initial state to the states at given times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
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
