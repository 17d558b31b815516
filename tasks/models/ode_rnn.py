"""The ODE-RNN of the paper: a field between observations, a gated update at each of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from snopt import ODEBlock
from snopt.ode.compiled import Compiled


class TanhField(nn.Module):
    """The field F(h): four linear layers of equal width with tanh between, the same at all times.

    Args:
        hidden: width of the state.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, hidden)
        self.linear4 = nn.Linear(hidden, hidden)

    def forward(self, t: Tensor, h: Float[Tensor, "n h"]) -> Float[Tensor, "n h"]:
        """The velocity; ``t`` is not used."""
        h = torch.tanh(self.linear1(h))
        h = torch.tanh(self.linear2(h))
        h = torch.tanh(self.linear3(h))
        velocity: Tensor = self.linear4(h)
        return velocity


class GatedCell(nn.Module):
    """A gated recurrent unit whose input side is computed for a whole series at once.

    The reset and update gates have one bias each, so the cell has fewer parameters than
    :class:`torch.nn.GRUCell`.

    Args:
        inputs: channels of an observation.
        hidden: width of the state.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 3 * hidden)
        self.gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.candidate = nn.Linear(hidden, hidden)
        # The gates are one layer over observation and state together, and start as such.
        bound = 1.0 / math.sqrt(inputs + hidden)
        with torch.no_grad():
            self.inputs.weight[: 2 * hidden].uniform_(-bound, bound)
            self.inputs.bias[: 2 * hidden].uniform_(-bound, bound)
            self.gates.weight.uniform_(-bound, bound)

    def project(self, observations: Float[Tensor, "n t c"]) -> Float[Tensor, "n t g"]:
        """What the observations contribute to the gates and the candidate, at all times."""
        projected: Tensor = self.inputs(observations)
        return projected

    def forward(
        self, projected: Float[Tensor, "n g"], h: Float[Tensor, "n h"]
    ) -> Float[Tensor, "n h"]:
        """The state after an observation, from its column of :meth:`project`."""
        from_gates, from_candidate = projected.tensor_split([2 * h.shape[-1]], dim=-1)
        reset, update = torch.sigmoid(from_gates + self.gates(h)).chunk(2, dim=-1)
        candidate = torch.tanh(from_candidate + reset * self.candidate(h))
        return torch.lerp(candidate, h, update)


class SeriesRNN(nn.Module, ABC):
    """Classifies series whose observations lie on a common, regular grid of times.

    Attributes:
        cell: the update at an observation.
        head: what is read of the state at a series' own last observation, to logits.
    """

    cell: GatedCell
    head: nn.Linear

    def forward(
        self,
        observations: Float[Tensor, "n t c"],
        observed: Bool[Tensor, "n t"],
        last: Int[Tensor, " n"],
    ) -> Float[Tensor, "n k"]:
        """Logits of a batch of series.

        Args:
            observations: inputs at the grid points; finite where nothing was observed too, though
                what stands there changes nothing.
            observed: whether anything was observed at a grid point.
            last: index of each series' last observation.
        """
        points = int(last.max()) + 1
        projected = self.cell.project(observations).transpose(0, 1)[:points]
        masks = observed.t().unsqueeze(-1)[:points]
        states = self.states(projected, masks)
        own_last = last.view(1, -1, 1).expand(1, -1, states.shape[-1])
        logits: Tensor = self.head(states.gather(0, own_last).squeeze(0))
        return logits

    @abstractmethod
    def states(
        self, projected: Float[Tensor, "t n g"], masks: Bool[Tensor, "t n 1"]
    ) -> Float[Tensor, "t n h"]:
        """What the head may read, at every grid point.

        Args:
            projected: the observations as the cell takes them.
            masks: where anything was observed.
        """


class ODERNN(SeriesRNN):
    """Classifies series with an ODE between the observations.

    From one grid point to the next every hidden state follows the field over the elapsed time; at a
    grid point the cell updates those states whose series is observed there. The state at a series'
    own last observation goes to the head. A series that has ended stays in the batch until its
    longest one ends; what its state does there reaches no output.

    With direct backpropagation through fixed steps, ``compile`` among the solver's options compiles
    several intervals at a time, solves and updates together. Where somebody listens to a module in
    there, an ordinary forward pass is made instead.

    Args:
        inputs: channels of an observation.
        hidden: width of the state.
        classes: number of classes.
        elapsed: time between grid points, one sampling interval by default as in the paper.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Attributes:
        block: the ODE over one interval, solved once for each; ``block.field`` is its field.
        cell: the update at an observation.
        head: final state to logits.

    Source: Rubanova et al., Latent ODEs for Irregularly-Sampled Time Series, 2019; settings of Liu
    et al., Second-Order Neural ODE Optimizer, 2021.
    """

    #: Intervals in one compiled region; what remains of a series is done one by one.
    REGION = 4

    def __init__(
        self,
        inputs: int,
        hidden: int,
        classes: int,
        *,
        elapsed: float = 1.0,
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.block = ODEBlock(TanhField(hidden), (0.0, elapsed), **solver)
        self.cell = GatedCell(inputs, hidden)
        self.head = nn.Linear(hidden, classes)
        self._region: Compiled[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    @override
    def states(
        self, projected: Float[Tensor, "t n g"], masks: Bool[Tensor, "t n 1"]
    ) -> Float[Tensor, "t n h"]:
        h = projected.new_zeros(projected.shape[1], self.hidden)
        h = torch.where(masks[0], self.cell(projected[0], h), h)
        follow = self._compiled if self._compiles() else self._one_by_one
        return torch.cat([h[None], *follow(h, projected[1:], masks[1:])])

    def _one_by_one(self, h: Tensor, projected: Tensor, masks: Tensor) -> list[Tensor]:
        """States after each of the points (T, N, ...), as tensors of shape (1, N, h)."""
        states = []
        for inputs, mask in zip(projected.unbind(), masks.unbind(), strict=True):
            h = self.block(h)
            h = torch.where(mask, self.cell(inputs, h), h)
            states.append(h[None])
        return states

    def _compiled(self, h: Tensor, projected: Tensor, masks: Tensor) -> list[Tensor]:
        """The same in compiled regions, as tensors of shape (points of the region, N, h)."""
        if self._region is None:
            self._region = Compiled(self._intervals, "the ODE-RNN", dynamic=False)
        regions, rest = divmod(len(projected), self.REGION)
        sizes = [self.REGION] * regions + [1] * rest
        grid = self.block.grid(h)
        states = []
        for inputs, mask in zip(projected.split(sizes), masks.split(sizes), strict=True):
            states.append(self._region(h, inputs, mask, grid))
            h = states[-1][-1]
            self.block.record_external_solves(h, len(inputs))
        return states

    def _intervals(self, h: Tensor, projected: Tensor, masks: Tensor, grid: Tensor) -> Tensor:
        """Some intervals as a function of tensors alone."""
        states = []
        for inputs, mask in zip(projected.unbind(), masks.unbind(), strict=True):
            h = self.block.unroll(h, grid)
            h = torch.where(mask, self.cell(inputs, h), h)
            states.append(h)
        return torch.stack(states)

    def _compiles(self) -> bool:
        """Whether compiled regions may make this pass; hooks on what is inside would be silent."""
        # A block may have been replaced by another module, which then solves as it pleases.
        if not (isinstance(self.block, ODEBlock) and self.block.can_unroll):
            return False
        return not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for part in (self.block, self.cell)
            for m in part.modules()
        )

    def __getstate__(self) -> dict[str, Any]:
        # A compiled function belongs to this model, not to its copies.
        return {**self.__dict__, "_region": None}
