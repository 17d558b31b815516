"""A solver's state is one tensor; a model's may be a tuple. This maps between the two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
"""What a field sees: one tensor, or a tuple of tensors."""


class Layout:
    """The shapes behind one flat tensor.

    Args:
        shapes: shape of every part, or ``None`` for a state that is one tensor and stays as it is.
    """

    def __init__(self, shapes: Sequence[torch.Size] | None) -> None:
        self.shapes = shapes
        self.sizes = None if shapes is None else [math.prod(shape) for shape in shapes]

    @classmethod
    def of(cls, state: State) -> Layout:
        """The layout of a given state."""
        return cls(None if isinstance(state, Tensor) else [part.shape for part in state])

    def pack(self, state: State) -> Tensor:
        """One tensor that holds all parts."""
        if isinstance(state, Tensor):
            return state
        return torch.cat([part.reshape(-1) for part in state])

    def unpack(self, flat: Tensor) -> State:
        """The state behind ``flat``; leading dimensions of ``flat`` (times) are kept."""
        if self.shapes is None or self.sizes is None:
            return flat
        lead = flat.shape[:-1]
        parts = torch.split(flat, self.sizes, dim=-1)
        return tuple(
            part.reshape((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)
        )

    def norm(self, flat: Tensor) -> Tensor:
        """The error norm of torchdiffeq: root mean square, the largest over a tuple's parts."""
        parts = self.unpack(flat)
        if isinstance(parts, Tensor):
            return _rms(parts)
        return torch.stack([_rms(part) for part in parts if part.numel()]).max()


def _rms(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()


def all_finite(x: Tensor) -> bool:
    """Whether every element is finite."""
    x = x.detach()
    # One pass over the elements instead of five; a sum of finite numbers may overflow, though.
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def batch_size(state: State) -> int:
    """Samples in a state: the first dimension of its first part (1 for a state without one)."""
    first = state if isinstance(state, Tensor) else state[0]
    return int(first.shape[0]) if first.ndim > 1 else 1
