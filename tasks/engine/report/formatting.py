"""Numbers as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Callable

from tasks.engine.report.statistics import Spread

NOTHING = "–"


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be helped."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def spread(value: Spread, show: Callable[[float], str] = number) -> str:
    """The median, with the range in brackets where the seeds differ."""
    if value.count == 0:
        return NOTHING
    median, low, high = show(value.median), show(value.low), show(value.high)
    return median if low == median == high else f"{median} [{low}, {high}]"


def percent(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else outcome(value)


def outcome(value: float) -> str:
    """A final value; one that is infinite stands for a run that diverged."""
    return "diverged" if math.isinf(value) else number(value)


def until(value: float) -> str:
    """Seconds, steps, evaluations or ratios; an infinite one never happened."""
    return "never" if math.isinf(value) else number(value)


def metric_style(metric: str) -> Callable[[float], str]:
    """How values of a metric are written."""
    return percent if metric in ("accuracy", "success_rate") else outcome
