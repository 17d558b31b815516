"""Initial conditions: from a model's input to the state of a system, and from the state out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Augment(nn.Module):
    """Appends channels of zeros: ANODE's state from the input.

    Args:
        extra: number of channels or features to append.
        dim: the dimension they are appended to.
    """

    def __init__(self, extra: int, *, dim: int = 1) -> None:
        super().__init__()
        if extra < 0:
            raise ValueError(f"extra={extra}; expected a number of channels >= 0")
        self.extra, self.dim = extra, dim

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with ``extra`` more channels."""
        shape = list(x.shape)
        shape[self.dim] = self.extra
        return torch.cat([x, x.new_zeros(shape)], dim=self.dim)

    def extra_repr(self) -> str:
        """The settings, for printing a model."""
        return f"extra={self.extra}, dim={self.dim}"


class Constant(nn.Module):
    """An encoder that learns one initial value for all samples.

    Args:
        features: width of the value.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(features).uniform_(-1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The value for every sample, shape (N, features)."""
        return self.value.expand(len(x), -1)


class InitialState(nn.Module):
    """Joins the input and an encoding of it and cuts them into the state's equal parts.

    With input width c and state width d the encoder returns ``parts`` · d - c channels: the first
    d - c widen the position, the rest are the momentum.

    Args:
        encoder: from the input to the further channels.
        parts: tensors in the state (2 for SONODE, HBNODE, GHBNODE, NesterovNODE).
        dim: the dimension of features or channels.
    """

    def __init__(self, encoder: nn.Module, parts: int = 2, *, dim: int = 1) -> None:
        super().__init__()
        self.encoder, self.parts, self.dim = encoder, parts, dim

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The state's parts, each of width d.

        Raises:
            ValueError: input and encoding do not add up to a multiple of ``parts``.
        """
        return _cut(torch.cat([x, self.encoder(x)], dim=self.dim), self.parts, self.dim)


class AdamInitialState(nn.Module):
    """AdamNODE's (h, m, v) from the input, with v(0) >= 0.

    Args:
        encoder: from the input to o, further channels: 2 d - c of them with ``aligned``, else
            (3 d - c) / 2, for input width c and state width d.
        aligned: True gives h = [x, first d - c channels of o], m = the other channels, v = m².
            False is the released code: [x, o, o²] cut into thirds, where the cuts fall inside o
            and o² unless c = d (as in Silverbox alone).
        dim: the dimension of features or channels.
    """

    def __init__(self, encoder: nn.Module, *, aligned: bool = True, dim: int = 1) -> None:
        super().__init__()
        self.encoder, self.aligned, self.dim = encoder, aligned, dim

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(h, m, v), each of width d.

        Raises:
            ValueError: the widths do not add up.
        """
        o = self.encoder(x)
        if self.aligned:
            h, m = _cut(torch.cat([x, o], dim=self.dim), 2, self.dim)
            return h, m, m.square()
        return _cut(torch.cat([x, o, o.square()], dim=self.dim), 3, self.dim)


class FirstPart(nn.Module):
    """The position h of a state (h, m, ...): what a head reads."""

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        """h; a state of one tensor passes through."""
        return state if isinstance(state, Tensor) else state[0]


def _cut(joined: Tensor, parts: int, dim: int) -> tuple[Tensor, ...]:
    width = joined.shape[dim]
    if width % parts:
        raise ValueError(
            f"{width} channels of input and encoding cannot be cut into {parts} equal parts; "
            "change the encoder's width"
        )
    return joined.chunk(parts, dim=dim)
