"""Running averages of G G^T and G^T G, and the factors that they give.

Source: Gupta et al., Shampoo, 2018; Vyas et al., SOAP, 2024.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from snopt.curvature.kronecker import Factors, Modes, Sum, gradient_factors, gradient_moments

DECAY = 0.95
"""Of the averages, SOAP's default."""


class Average(NamedTuple):
    """The averages of one layer, not corrected for their start at zero.

    Attributes:
        left: of G G^T, as :func:`snopt.curvature.kronecker.gradient_moments` has it.
        right: of G^T G, likewise.
        steps: gradients so far.
    """

    left: Sum
    right: Sum
    steps: int


def averaged(old: Average | None, grad: Tensor, rows: Modes, columns: Modes) -> Average:
    """The averages with one more gradient, (groups, out, in); those given are changed in place."""
    found = gradient_moments(grad, rows, columns)
    if old is None:
        left, right = (tuple(tuple(map(torch.zeros_like, x)) for x in side) for side in found)
        old = Average(left, right, 0)
    for means, news in zip((*old.left, *old.right), chain(*found), strict=True):
        for mean, new in zip(means, news, strict=True):
            mean.lerp_(new, 1 - DECAY)
    return old._replace(steps=old.steps + 1)


def gradient_average_factors(average: Average, samples: float) -> Factors:
    """Factors from averages, with N samples behind one gradient."""
    seen = 1 - DECAY**average.steps  # the share of the means that is not their start at zero
    return gradient_factors(average.left, average.right, samples, seen)
