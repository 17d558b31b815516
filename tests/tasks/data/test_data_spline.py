"""The batched natural cubic spline against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from tasks.data import spline

pytestmark = pytest.mark.usefixtures("checked_shapes")


def expected(column: np.ndarray) -> np.ndarray:
    knots = np.flatnonzero(~np.isnan(column))
    grid = np.arange(len(column))
    if len(knots) == 0:
        return np.zeros(len(column))
    if len(knots) == 1:
        return np.full(len(column), column[knots[0]])
    spline = CubicSpline(knots, column[knots], bc_type="natural")
    return spline(np.clip(grid, knots[0], knots[-1]))


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("length", [2, 3, 17])
def test_equals_scipy_for_any_pattern(missing: float, length: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(20, length, 3))
    values[generator.random(values.shape) < missing] = np.nan
    filled = spline.fill(values)
    for case in range(20):
        for channel in range(3):
            np.testing.assert_allclose(
                filled[case, :, channel], expected(values[case, :, channel]), atol=1e-12
            )


def test_observations_are_kept_and_ends_repeat() -> None:
    values = np.array([[np.nan, 1.0, np.nan, 4.0, 2.0, np.nan, np.nan]])[..., None]
    filled = spline.fill(values)[0, :, 0]
    np.testing.assert_allclose(filled[[1, 3, 4]], [1.0, 4.0, 2.0])
    np.testing.assert_allclose(filled[[0, 5, 6]], [1.0, 2.0, 2.0])


def test_series_that_end_early_equal_scipy_too() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(6, 9, 2))
    for case, end in enumerate((1, 2, 5, 8, 9, 0)):
        values[case, end:] = np.nan
    values[2, 3, 1] = np.nan  # and one with a gap besides
    filled = spline.fill(values)
    for case in range(6):
        for channel in range(2):
            np.testing.assert_allclose(
                filled[case, :, channel], expected(values[case, :, channel]), atol=1e-12
            )


def test_straight_line_stays_straight() -> None:
    line = np.arange(9.0)
    gaps = line.copy()
    gaps[[2, 3, 6]] = np.nan
    np.testing.assert_allclose(spline.fill(gaps[None, :, None])[0, :, 0], line)
