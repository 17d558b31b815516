"""A checkerboard: uniform on 8 squares of a 4 x 4 board.

Source: the toy densities of FFJORD (Grathwohl et al. 2019).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Of the density in nats: 8 squares of side 2. No flow's negative log-likelihood is lower.
ENTROPY = math.log(8 * 2.0**2)


def make_checkerboard(samples: int, seed: int) -> NDArray[np.float64]:
    """Points of shape (samples, 2) in [-4, 4)^2.

    Args:
        samples: number of points.
        seed: of the generator.
    """
    draw = np.random.default_rng(seed)
    column = draw.uniform(-2.0, 2.0, samples)
    row = draw.uniform(size=samples) - 2.0 * draw.integers(0, 2, samples)
    return 2.0 * np.stack([column, row + np.floor(column) % 2], axis=1)
