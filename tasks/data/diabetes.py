"""Diabetes: ten measurements of 442 patients, and how far the disease went in a year.

Source: Efron, Hastie, Johnstone and Tibshirani, Least angle regression, 2004; inside scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Part = tuple[Array, Array]

FEATURES = 10


@dataclass(frozen=True)
class RegressionTable:
    """Features (N, F) and targets (N, 1) of each split; mean 0 and deviation 1 over the first.

    Attributes:
        train: to train on.
        valid: to validate.
        test: to test.
        unit: the targets' deviation, in their own unit.
    """

    train: Part
    valid: Part
    test: Part
    unit: float


def read_diabetes() -> RegressionTable:
    """The table, split 70/15/15 at random, always in the same way."""
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True, scaled=False)
    rows = np.concatenate([features, targets[:, None]], axis=1)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    sizes = np.cumsum([round(0.7 * len(rows)), round(0.15 * len(rows))])
    known = rows[: sizes[0]]
    deviation = known.std(axis=0)
    rows = (rows - known.mean(axis=0)) / deviation
    train, valid, test = ((part[:, :-1], part[:, -1:]) for part in np.split(rows, sizes))
    return RegressionTable(train, valid, test, float(deviation[-1]))
