"""Seconds of several ways to do the same thing, measured side by side.

Machines slow down and speed up while they measure. Every round therefore runs each variant once, in
an order that alternates, and ratios are taken within rounds before their median is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds by variant and round."""

    rounds: Mapping[str, tuple[float, ...]]

    def seconds(self, name: str) -> float:
        """The median over rounds."""
        return median(self.rounds[name])

    def ratio(self, name: str, base: str) -> tuple[float, float, float]:
        """Median, lower and upper quartile of ``name`` over ``base``, round by round."""
        pairs = zip(self.rounds[name], self.rounds[base], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        quarter = len(ratios) // 4
        return median(ratios), ratios[quarter], ratios[-1 - quarter]


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2
) -> Timings:
    """Time variants in rounds.

    Args:
        variants: what to call, by name.
        rounds: how often each is timed.
        warm_up: untimed rounds before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warm_up, rounds):
        order = list(variants) if number % 2 else list(variants)[::-1]
        for name in order:
            spent = once(variants[name])
            if number >= 0:
                seconds[name].append(spent)
    return Timings({name: tuple(values) for name, values in seconds.items()})


def once(call: Callable[[], object]) -> float:
    """Seconds of one call, queued kernels included."""
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
