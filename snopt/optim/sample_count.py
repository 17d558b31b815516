"""N, the samples behind a step's gradient: over its micro-batches, and over all processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping

import torch

from snopt.curvature.processes import Processes
from snopt.ode.block import ODEBlock
from snopt.optim.tally import Tally

logger = logging.getLogger(__name__)


class SampleCount:
    """Counts at refreshes and follows in between, when blocks tell the size of their last batch.

    Args:
        blocks: of the model.
        processes: whose gradients are averaged.

    Attributes:
        total: N; 1 before the first step.
        micro_batches: N over the samples of one backward pass, as of the last refresh.
    """

    def __init__(self, blocks: Mapping[str, ODEBlock], processes: Processes) -> None:
        self.blocks, self.processes = blocks, processes
        self.total = self.micro_batches = 1.0
        self._own = 0.0  # this process's part; 0 before the first step
        self._tally = Tally()
        self._told = False

    def start(self) -> None:
        """Have blocks count the coming backward passes, where no curvature tells."""
        self._tally.start([*self.blocks.values()])

    def stop(self) -> None:
        """Count no more."""
        self._tally.stop()

    def clear(self) -> None:
        """Count from nothing."""
        self._tally.clear()

    def load(self, total: float, micro_batches: float) -> None:
        """Go on from a saved state."""
        self.total, self.micro_batches, self._own = total, micro_batches, 0.0

    def take(self, batch: float, device: torch.device) -> bool:
        """Samples that a refresh's curvature was gathered of; whether any process has some."""
        (total,) = self.processes.total([batch], device)
        if total:
            self._compare(batch)
            self._own, self.total = float(batch), float(total)
        return bool(total)

    def take_tally(self, device: torch.device) -> bool:
        """Samples that the blocks have counted since :meth:`start`; whether N is known."""
        batch = self._tally.samples
        self._tally.stop()
        self._compare(batch)
        self._own = float(batch or self._last or 0)
        self._share(device)
        return self.total != 1.0 or bool(self._own)

    def follow(self, device: torch.device) -> None:
        """N of a step: what the blocks saw last, times the micro-batches."""
        if self._last is not None:
            self._own = self._last * self.micro_batches
        self._share(device)

    def warn_of_none(self, rule: str) -> None:
        """Say once that N is unknown."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"rule={rule!r} with basis='gradient' is told by ODE blocks how many "
                "samples are behind a gradient, and none took part. They are taken for one, so "
                "that damping is too large by their number: choose basis='curvature', for which "
                "all layers tell",
                stacklevel=8,
            )

    def tell_of_disagreement(self, counts: object) -> None:
        """Say once that layers and blocks saw different numbers of samples."""
        if not self._told:
            self._told = True
            logger.warning(
                "layers and blocks saw different numbers of samples in one step (%s). The first "
                "dimension of their inputs is taken for the sample. Where it is time, or a draw, "
                "or several of them flattened, their factors are off by a constant: put the "
                "sample first, x.transpose(0, 1), and leave further dimensions apart",
                counts,
            )

    @property
    def _last(self) -> int | None:
        """Samples of the last batch, perhaps an empty one; ``None`` where no block tells."""
        told = [x.samples for x in self.blocks.values() if x.samples or x.asked == 0]
        return max(told, default=None)

    def _compare(self, batch: float) -> None:
        if batch:  # an empty one, or none, says nothing about micro-batches
            self.micro_batches = batch / self._last if self._last else 1.0

    def _share(self, device: torch.device) -> None:
        (total,) = self.processes.total([self._own], device)
        self.total = total or self.total
