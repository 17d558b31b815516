"""Where the time of a run goes: named buckets that add up to wall time.

At every moment exactly one bucket is running, so nothing is counted twice and nothing is lost. The
training clock is the sum of the buckets of training; evaluation, logging and checkpoints stand
outside of it. Beside it, the seconds that the process spent on processors are counted: on a shared
machine they say what a run costs when nobody else is there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from tasks.engine.config.settings import ClockKind

Bucket = Literal[
    "data",
    "forward",
    "backward",
    "curvature",
    "optimizer",
    "evaluation",
    "logging",
    "compile",
    "other",
]
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)

#: Buckets that the training clock counts.
TRAINING: tuple[Bucket, ...] = ("data", "forward", "backward", "curvature", "optimizer", "compile")


class Clock:
    """A stopwatch with one running bucket, ``other`` at first.

    Args:
        device: synchronised before every reading, so that queued kernels are charged to the bucket
            that queued them.
        limits: the seconds that a run's limits and intervals are in.
        now: seconds of a monotonic clock.
        cpu_now: seconds that the process has spent on processors, all of its threads together.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        limits: ClockKind = "wall",
        *,
        now: Callable[[], float] = time.perf_counter,
        cpu_now: Callable[[], float] = time.process_time,
    ) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._now, self._cpu_now, self._limits = now, cpu_now, limits
        self._cpu, self._cpu_since = 0.0, cpu_now()
        self._seconds: dict[Bucket, float] = dict.fromkeys(BUCKETS, 0.0)
        self._running: Bucket = "other"
        self._since = now()

    def switch(self, bucket: Bucket) -> None:
        """Charge the time since the last switch to the running bucket and start another."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        now, cpu = self._now(), self._cpu_now()
        self._seconds[self._running] += now - self._since
        if self._running in TRAINING:
            self._cpu += cpu - self._cpu_since
        self._since, self._cpu_since = now, cpu
        self._running = bucket

    @contextmanager
    def during(self, bucket: Bucket) -> Iterator[None]:
        """Run a bucket for the length of a ``with`` block, then the one that ran before."""
        before = self._running
        self.switch(bucket)
        try:
            yield
        finally:
            self.switch(before)

    def move(self, seconds: float, source: Bucket, target: Bucket) -> None:
        """Charge part of what ``source`` was charged to ``target`` instead.

        Args:
            seconds: how much; no more than ``source`` has, and nothing where negative.
            source: the bucket that was running.
            target: the bucket that the time belongs to.
        """
        self.switch(self._running)
        moved = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= moved
        self._seconds[target] += moved

    @property
    def seconds(self) -> float:
        """The training clock, in seconds."""
        running = self._now() - self._since if self._running in TRAINING else 0.0
        return sum(self._seconds[bucket] for bucket in TRAINING) + running

    @property
    def cpu_seconds(self) -> float:
        """Seconds on processors while the training clock ran."""
        running = self._cpu_now() - self._cpu_since if self._running in TRAINING else 0.0
        return self._cpu + running

    @property
    def elapsed(self) -> float:
        """The training clock as the run's limits and intervals have it."""
        return self.cpu_seconds if self._limits == "cpu" else self.seconds

    @property
    def wall(self) -> float:
        """Seconds since the run began, those of the processes it was resumed from included."""
        return sum(self._seconds.values()) + self._now() - self._since

    def buckets(self) -> dict[str, float]:
        """Seconds of every bucket; their sum is :attr:`wall`."""
        self.switch(self._running)
        return {bucket: self._seconds[bucket] for bucket in BUCKETS}

    def load(self, buckets: Mapping[str, float], cpu_seconds: float = 0.0) -> None:
        """Add the buckets and the :attr:`cpu_seconds` of the process that this one resumes."""
        for bucket in BUCKETS:
            self._seconds[bucket] += buckets.get(bucket, 0.0)
        self._cpu += cpu_seconds


def compile_seconds(part: Literal["forward", "backward"]) -> float:
    """Seconds that ``torch.compile`` has spent so far in this process; 0 where it was never used.

    Args:
        part: compilation that a forward pass sets off (forward graphs, and backward ones traced
            with them), or the lazy one at the first backward pass.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0.0
    metrics: Mapping[str, list[float]] = getattr(dynamo, "compilation_time_metrics", {})
    return max(sum(metrics.get(name, ())) for name in _COMPILE_METRICS[part])


_COMPILE_METRICS = {
    "forward": ("_compile.compile_inner",),
    # torch 2.13's name, and that of earlier versions.
    "backward": ("compile_fx.<locals>.bw_compiler", "compile_fx.<locals>.bw_compiler_base"),
}
