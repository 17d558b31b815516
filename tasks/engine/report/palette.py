"""Colours of what is no optimizer; those of optimizers stand in their files."""

from __future__ import annotations

BUCKETS = {
    "data": "#B8B8B8",
    "forward": "#4477AA",
    "backward": "#66CCEE",
    "curvature": "#D55E00",
    "optimizer": "#CCBB44",
    "compile": "#AA3377",
}
"""Colours of the buckets of training."""

TARGET = "#888888"
"""Colour of the line at the first-order optimizers' best final value."""
