"""Time spent in parts of the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds spent in some parts of the work, an accelerator's queue included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Add the time spent inside to :attr:`seconds`."""
        synchronize(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            synchronize(device)
            self.seconds += time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator's queue, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
