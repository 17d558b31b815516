"""Two noisy rings, the two-dimensional density of the original Neural ODE paper's flow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Standard deviation of the noise, and radius of the inner ring over that of the outer one.
NOISE, FACTOR = 0.06, 0.5


def make_rings(samples: int, seed: int) -> NDArray[np.float64]:
    """Points of shape (samples, 2), half on each ring, shuffled.

    Args:
        samples: number of points.
        seed: of the generator, less than 2**32.
    """
    from sklearn.datasets import make_circles

    points: NDArray[np.float64] = make_circles(
        samples, noise=NOISE, factor=FACTOR, random_state=seed
    )[0]
    return points
