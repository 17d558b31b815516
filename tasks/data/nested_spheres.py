"""A disc inside a ring: the point cloud that a planar flow cannot pull apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INNER, RING = 0.5, (0.85, 1.0)


def make_nested_spheres(
    inner: int, outer: int, seed: int, dims: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in a ball with target -1, and in a shell around it with target +1.

    Both are uniform over their volume, by rejection from the cube as in the published recipe.

    Args:
        inner: points of the ball, radius at most 0.5.
        outer: points of the shell, radius 0.85 to 1.
        seed: of the generator.
        dims: dimensions.

    Returns:
        Points of shape (inner + outer, dims) and targets of shape (inner + outer, 1), shuffled.

    Source: Dupont, Doucet and Teh, Augmented Neural ODEs, 2019; sizes of Xia et al., 2021.
    """
    rng = np.random.default_rng(seed)
    ball = _reject(rng, inner, dims, 0.0, INNER)
    shell = _reject(rng, outer, dims, *RING)
    points = np.concatenate([ball, shell])
    targets = np.concatenate([-np.ones((inner, 1)), np.ones((outer, 1))])
    order = rng.permutation(len(points))
    return points[order], targets[order]


def _reject(
    rng: np.random.Generator, count: int, dims: int, low: float, high: float
) -> NDArray[np.float64]:
    kept = np.empty((0, dims))
    while len(kept) < count:
        candidates = rng.uniform(-1.0, 1.0, (4 * count + 16, dims))
        radii = np.linalg.norm(candidates, axis=1)
        kept = np.concatenate([kept, candidates[(low <= radii) & (radii <= high)]])
    return kept[:count]
