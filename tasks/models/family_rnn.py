"""The ODE-RNN of :mod:`tasks.models.ode_rnn` with any family between the observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from snopt import ODEBlock
from tasks.models.families import build_field, find_family
from tasks.models.family_nets import Autonomous, Mlp
from tasks.models.ode_rnn import GatedCell, SeriesRNN

State = tuple[Tensor, ...]


class FamilyRNN(SeriesRNN):
    """Classifies series with any family between the observations.

    As in :class:`tasks.models.ode_rnn.ODERNN`, whose network ``node`` makes here too. Position and
    momentum of a family both take observations in, side by side; ANODE's further features start at
    zero and move with the field alone, as AdamNODE's third part does, which starts at m². The head
    reads the position.

    Args:
        family: the ``model`` configuration.
        inputs: channels of an observation.
        hidden: width of the position, ANODE's further features apart.
        classes: number of classes.
        elapsed: time between grid points.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Attributes:
        block: the ODE over one interval, solved once for each.
        cell: the update at an observation.
        head: final position to logits.

    Raises:
        ValueError: no such family.

    Source: Rubanova et al., Latent ODEs for Irregularly-Sampled Time Series, 2019; momentum in the
    update as in Xia et al., Heavy Ball Neural Ordinary Differential Equations, 2021.
    """

    def __init__(
        self,
        family: Mapping[str, Any],
        inputs: int,
        hidden: int,
        classes: int,
        *,
        elapsed: float = 1.0,
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        record = find_family(family)
        width = record.width(hidden)
        self.hidden, self.width, self.parts = hidden, width, record.parts
        self.updated = hidden * record.open_parts
        inner = Autonomous(Mlp([record.inputs(width), *[width] * 4], nn.Tanh))
        self.block = ODEBlock(build_field(family, inner), (0.0, elapsed), **solver)
        self.cell = GatedCell(inputs, self.updated)
        self.head = nn.Linear(width, classes)

    @override
    def states(
        self, projected: Float[Tensor, "t n g"], masks: Bool[Tensor, "t n 1"]
    ) -> Float[Tensor, "t n h"]:
        """The positions."""
        open_part = projected.new_zeros(projected.shape[1], self.updated)
        state: State | None = None
        positions = []
        for inputs, mask in zip(projected.unbind(), masks.unbind(), strict=True):
            if state is not None:
                state = self._evolve(state)
                open_part = self._open(state)
            open_part = torch.where(mask, self.cell(inputs, open_part), open_part)
            state = self._begin(open_part) if state is None else self._close(state, open_part)
            positions.append(state[0])
        return torch.stack(positions)

    def _begin(self, open_part: Tensor) -> State:
        if self.parts == 1:
            further = open_part.new_zeros(len(open_part), self.width - self.hidden)
            return (torch.cat([open_part, further], dim=1),)
        h, m = open_part.chunk(2, dim=1)
        return (h, m, m.square())[: self.parts]

    def _evolve(self, state: State) -> State:
        if self.parts == 1:
            return (self.block(state[0]),)
        return tuple(self.block(state))

    def _open(self, state: State) -> Tensor:
        """What observations change, (N, updated)."""
        return state[0][:, : self.hidden] if self.parts == 1 else torch.cat(state[:2], dim=1)

    def _close(self, state: State, open_part: Tensor) -> State:
        if self.parts == 1:
            return (torch.cat([open_part, state[0][:, self.hidden :]], dim=1),)
        return (*open_part.chunk(2, dim=1), *state[2:])
