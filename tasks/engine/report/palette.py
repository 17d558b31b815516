"""Colours: one an optimizer, the same in every figure, table and report."""

from __future__ import annotations

# Okabe and Ito's palette first, whose colours colour-blind readers can tell apart.
_OPTIMIZERS = {
    "snopt": "#D55E00",
    "sgd": "#0072B2",
    "adam": "#009E73",
    "adamw": "#56B4E9",
    "soap": "#CC79A7",
    "muon": "#E69F00",
    "shampoo": "#6A3D9A",
    "adahessian": "#8C564B",
    "lbfgs": "#555555",
}
_SPARE = ("#A6761D", "#17BECF", "#BCBD22", "#7F7F7F", "#393B79")

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


def colour(optim: str) -> str:
    """An optimizer's colour; one that is not listed always gets the same spare one."""
    return _OPTIMIZERS.get(optim, _SPARE[sum(optim.encode()) % len(_SPARE)])
