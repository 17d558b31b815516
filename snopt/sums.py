"""What a capture adds up for one layer, and how it counts samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snopt.kronecker import Factors
from snopt.layers import Layer
from snopt.passes import Pass
from snopt.processes import Processes


@dataclass
class Sums:
    """The four sums behind one layer's factors, and the backward pass that added to them last."""

    a: Tensor
    b: Tensor
    samples: float = 0.0
    rows: float = 0.0
    last_pass: int = -1
    kind: Pass = Pass.INNER

    @classmethod
    def zeros(cls, layer: Layer) -> Sums:
        """Nothing seen yet."""
        groups, out, width = layer.shape
        like = layer.weight.detach()
        dtype = torch.promote_types(torch.float32, like.dtype)
        return cls(
            torch.zeros(groups, width, width, dtype=dtype, device=like.device),
            torch.zeros(groups, out, out, dtype=dtype, device=like.device),
        )

    def outdated(self, a: Tensor | None, b: Tensor) -> bool:
        """Whether the layer has changed: a bias frozen or thawed, moved, or cast."""
        width = self.a.shape if a is None else a.shape
        return (width, b.dtype, b.device) != (self.a.shape, self.b.dtype, self.b.device)

    def reduce(self, processes: Processes) -> None:
        """Add up over processes, whose losses' mean is what they train on."""
        self.b /= processes.size**2
        processes.add_up(self.a, self.b)
        self.samples, self.rows = processes.total([self.samples, self.rows], self.a.device)

    def factors(self) -> Factors | None:
        """A and B, or ``None`` if nothing was seen."""
        if self.samples == 0 or self.rows == 0:
            return None
        return Factors(((self.a / self.samples,),), self.b * (self.samples**2 / self.rows))


class Passes:
    """Counts samples once per forward-and-backward pass, however often a module is used in it."""

    def __init__(self) -> None:
        self.samples = 0
        self.current = 0
        self.counted = -1
        self.answered = False

    def clear(self) -> None:
        """Count from nothing; numbers that were given out stay valid."""
        self.samples, self.counted, self.answered = 0, -1, False

    def forward(self) -> int:
        """A use in a forward pass; the first after a backward pass begins a new one."""
        if self.answered:
            self.current += 1
            self.answered = False
        return self.current

    def backward(self, number: int, batch: int) -> bool:
        """Count the batch and return True if this is the first answer to that pass."""
        self.answered = True
        if number == self.counted:
            return False
        self.counted = number
        self.samples += batch
        return True
