"""Irregular observation times: every sample of a batch moves for a time of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ElapsedTime(nn.Module):
    """A system run for ``elapsed`` time units per sample while the solver goes from 0 to 1.

    With t = s · elapsed, d state/ds = elapsed · d state/dt. The elapsed times travel in the state
    with derivative zero: a model that solves once per observation interval runs all backward solves
    after the forward ones, when an attribute would hold only the last interval's times.

    The state is that of ``system`` as a tuple, followed by the elapsed times of shape (N,).

    Args:
        system: an autonomous or time-dependent field over a tensor (``parts`` = 1 or no such
            attribute) or a tuple; it sees the solver's s as its time.
    """

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system
        self._single = getattr(system, "parts", 1) == 1

    def forward(self, s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Derivatives of the state's parts and zeros for the elapsed times."""
        *parts, elapsed = state
        out: Any = self.system(s, parts[0] if self._single else tuple(parts))
        derivatives = (out,) if self._single else out
        scaled = [d * elapsed.reshape(-1, *[1] * (d.ndim - 1)) for d in derivatives]
        return *scaled, torch.zeros_like(elapsed)

    def traces(self) -> dict[str, float]:
        """Learned scalars of the system."""
        found: dict[str, float] = getattr(self.system, "traces", dict)()
        return found
