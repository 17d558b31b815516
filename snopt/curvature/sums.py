"""What a capture adds up for one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snopt.curvature.kronecker import Factors
from snopt.curvature.processes import Processes
from snopt.layers.base import Layer
from snopt.ode.passes import Pass, cleared


@dataclass
class FactorSums:
    """The four sums behind one layer's factors, and the backward pass that added to them last."""

    a: Tensor
    b: Tensor
    samples: float = 0.0
    rows: float = 0.0
    last_pass: int = -1
    kind: Pass = Pass.INNER

    @classmethod
    def zeros(cls, layer: Layer) -> FactorSums:
        """Nothing seen yet."""
        groups, out, width = layer.shape
        like = layer.weight.detach()
        dtype = torch.promote_types(torch.float32, like.dtype)
        return cls(
            torch.zeros(groups, width, width, dtype=dtype, device=like.device),
            torch.zeros(groups, out, out, dtype=dtype, device=like.device),
        )

    def outdated(self, layer: Layer) -> bool:
        """Whether the layer has changed: a bias frozen or thawed, moved, or cast."""
        weight, width = layer.weight, layer.shape[2]
        dtype = torch.promote_types(torch.float32, weight.dtype)
        known = (self.a.shape[2], self.a.dtype, self.a.device)
        return (width, dtype, weight.device) != known

    def thrown_away(self, layer: Layer) -> bool:
        """Whether the gradient that belongs to the sums has been dropped or zeroed."""
        if cleared(layer.parameters):
            return True
        if any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters):
            return False
        return bool(self.a.any()) and bool(self.b.any())

    def reduce(self, processes: Processes) -> None:
        """Add up over processes, whose losses' mean is what they train on."""
        self.b /= processes.size**2
        processes.add_up(self.a, self.b)
        self.samples, self.rows = processes.total([self.samples, self.rows], self.a.device)

    def factors(self) -> Factors | None:
        """A and B, or ``None`` if nothing was seen."""
        if self.samples == 0 or self.rows == 0:
            return None
        b = self.b * (self.samples**2 / self.rows)
        return Factors(((self.a / self.samples,),), ((b,),))
