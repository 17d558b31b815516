"""Continuous normalising flows: densities by integrating a field and its divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from snopt import ODEBlock

#: Activation, and its derivative from input and output.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (torch.tanh, lambda x, y: 1.0 - y * y),
    "softplus": (functional.softplus, lambda x, y: torch.sigmoid(x)),
}
DIVERGENCES = ("rademacher", "gaussian", "exact")


class ConcatSquash(nn.Module):
    """Linear(x) * sigmoid(Linear(t)) + Linear(t) without bias.

    Args:
        inputs: width of x.
        outputs: width of the result.

    Source: Grathwohl et al., FFJORD, 2019.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(
        self, t: Float[Tensor, "1 1"], x: Float[Tensor, "n i"], v: Float[Tensor, "*d n i"]
    ) -> tuple[Float[Tensor, "n o"], Float[Tensor, "*d n o"]]:
        """The layer at x, and its derivative there in the directions v."""
        gate = torch.sigmoid(self.gate(t))
        # By way of the weight, not the module: statistics of the layer's inputs are those of x.
        derivative = functional.linear(v, self.linear.weight) * gate
        return self.linear(x) * gate + self.shift(t), derivative


class FlowField(nn.Module):
    """The field of (z, log p): dz/dt = F(t, z), d(log p)/dt = -div F(t, z).

    The divergence is the trace of the Jacobian, from derivatives of F in given directions: the unit
    vectors (exact), or one random direction e, for which e · (J e) has the trace as its mean. The
    derivatives are carried forward beside F itself, so no graph is built inside the field; it can
    be differentiated, compiled and evaluated without gradients like any other.

    Args:
        dims: dimensions of z.
        hidden: width of the hidden layers.
        layers: number of concat-squash layers, at least 1.
        activation: ``tanh`` or ``softplus``, between the layers.
        divergence: ``rademacher``, ``gaussian`` or ``exact``.

    Attributes:
        direction: the random direction, shaped like z. It stays for a solve and its backward pass,
            so the backward pass of a forward pass must come before the next forward pass.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self, dims: int, hidden: int, layers: int, activation: str, divergence: str
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}.")
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence={divergence!r}: must be one of {', '.join(DIVERGENCES)}.")
        widths = [dims, *[hidden] * (layers - 1), dims]
        self.layers = nn.ModuleList(ConcatSquash(i, o) for i, o in itertools.pairwise(widths))
        self.activation = activation
        self.divergence = divergence
        self.direction: Tensor | None = None

    def draw(self, z: Float[Tensor, "n d"], noise: torch.Generator) -> None:
        """Draw the direction of the next solve from ``noise``."""
        if self.divergence == "rademacher":
            signs = torch.randint(0, 2, z.shape, generator=noise, device=z.device)
            self.direction = signs.to(z.dtype) * 2.0 - 1.0
        elif self.divergence == "gaussian":
            self.direction = torch.randn(z.shape, generator=noise, device=z.device, dtype=z.dtype)

    def forward(
        self, t: Tensor, state: tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """The velocities of z and log p at time ``t``, a scalar tensor."""
        z, _ = state
        if self.divergence == "exact":
            eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
            velocity, columns = self._derivative(t, z, eye.unsqueeze(1).expand(-1, *z.shape))
            return velocity, -columns.diagonal(dim1=0, dim2=2).sum(-1)
        if self.direction is None:
            raise RuntimeError("no direction for the divergence: call draw() before the solve.")
        velocity, along = self._derivative(t, z, self.direction)
        return velocity, -(self.direction * along).sum(-1)

    def _derivative(
        self, t: Tensor, z: Float[Tensor, "n d"], v: Float[Tensor, "*k n d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "*k n d"]]:
        function, slope = ACTIVATIONS[self.activation]
        time = t.to(z.dtype).reshape(1, 1)
        for index, layer in enumerate(self.layers):
            if index:
                active = function(z)
                v = v * slope(z, active)
                z = active
            z, v = layer(time, z, v)
        return z, v


class ContinuousFlow(nn.Module):
    """A density over R^d: a standard normal at t = 0, moved by one or more fields to t = 1.

    Args:
        dims: dimensions of the data.
        hidden: width of the fields' hidden layers.
        layers: concat-squash layers of a field.
        activation: ``tanh`` or ``softplus``.
        blocks: number of fields, each with an ODE over [0, 1] of its own.
        divergence: ``rademacher``, ``gaussian`` or ``exact``.
        solver: keyword arguments of :class:`snopt.ODEBlock`.

    Attributes:
        blocks: the ODEs, data side first; each is solved from t = 1 to 0.

    Source: Chen et al., Neural Ordinary Differential Equations, 2018, section 4; Grathwohl et al.,
    FFJORD, 2019.
    """

    def __init__(
        self,
        dims: int,
        hidden: int,
        *,
        layers: int = 3,
        activation: str = "tanh",
        blocks: int = 1,
        divergence: str = "rademacher",
        solver: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks={blocks}: must be at least 1.")
        self.dims = dims
        self.blocks = nn.ModuleList(
            ODEBlock(FlowField(dims, hidden, layers, activation, divergence), (1.0, 0.0), **solver)
            for _ in range(blocks)
        )

    def forward(self, x: Float[Tensor, "n d"], noise: torch.Generator) -> Float[Tensor, " n"]:
        """Log-density of each sample, in nats.

        Args:
            x: data.
            noise: where the directions of the divergence estimate come from, one for each solve.
        """
        z, gained = self.to_base(x, noise)
        return _log_normal(z) - gained

    def _solves(self) -> list[tuple[FlowField, ODEBlock]]:
        blocks = [cast(ODEBlock, block) for block in self.blocks]
        return [(cast(FlowField, block.field), block) for block in blocks]

    def to_base(
        self, x: Float[Tensor, "n d"], noise: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Data to base: z(0), and the change of log p on the way."""
        state = (x, x.new_zeros(len(x)))
        for field, block in self._solves():
            field.draw(x, noise)
            state = block(state)
        return state

    def to_data(
        self, z: Float[Tensor, "n d"], noise: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """The inverse of :meth:`to_base`: x(1), and the change of log p on the way."""
        state = (z, z.new_zeros(len(z)))
        for field, block in reversed(self._solves()):
            field.draw(z, noise)
            z_path, gained_path = block(state, t=block.t_span[::-1])  # whatever T has become
            state = (z_path[-1], gained_path[-1])
        return state

    @torch.no_grad()
    def sample(
        self, count: int, noise: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Draw from the density.

        Args:
            count: number of samples.
            noise: where base samples and directions come from, on the model's device.

        Returns:
            Samples, and the log-density of each in nats.
        """
        weight = next(self.parameters())
        z = torch.randn(count, self.dims, generator=noise, device=weight.device, dtype=weight.dtype)
        x, gained = self.to_data(z, noise)
        return x, _log_normal(z) + gained


def _log_normal(z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(-1)
