"""Learned scalars that stay in their range: damping, restoring force, decay rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class LearnedScalar(nn.Module):
    """A scalar in (0, ``upper``), shared by all channels, learned through a raw number w.

    With a finite bound the value is ``upper`` · sigmoid(w), otherwise softplus(w).

    Args:
        initial: value at the start, inside the range.
        upper: end of the range.
        learned: False keeps the value fixed; it is then a buffer, not a parameter, so that it
            counts in no parameter total.
    """

    raw: Tensor

    def __init__(self, initial: float, *, upper: float = math.inf, learned: bool = True) -> None:
        super().__init__()
        if not 0.0 < initial < upper or not math.isfinite(initial):
            raise ValueError(f"initial={initial!r} is outside its range (0, {upper})")
        self.upper = upper
        if math.isinf(upper):
            raw = initial + math.log(-math.expm1(-initial))  # inverse of softplus
        else:
            raw = math.log(initial) - math.log(upper - initial)  # inverse of the scaled sigmoid
        value = torch.tensor(raw, dtype=torch.get_default_dtype())
        if learned:
            self.raw = nn.Parameter(value)
        else:
            self.register_buffer("raw", value)

    def forward(self) -> Tensor:
        """The current value, shape ()."""
        if math.isinf(self.upper):
            return softplus(self.raw)
        return self.upper * torch.sigmoid(self.raw)

    def extra_repr(self) -> str:
        """The current value and its bound, for printing a model."""
        return f"value={self.forward().item():.4g}, upper={self.upper}"
