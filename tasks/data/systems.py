"""Systems of ODEs whose trajectories are measured: what flows, in which units, and from where.

Source: the spiral is the demo of torchdiffeq (Chen et al. 2018); Lotka 1925 and Volterra 1926; van
der Pol 1926; the pendulum is the textbook's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """Names and sizes of what is measured.

    Normalised values are (value - centre) / scale, and normalised times are times / unit. All are
    fixed numbers, about mean and deviation, so that a loss means the same for every seed.

    Attributes:
        names: of the state's D parts.
        centre: of each part.
        scale: of each part.
        unit: a time in which the state changes by about its scale.
        time: name of the time.
        measured: the first so many parts are measured; what follows is only estimated.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    unit: float
    time: str
    measured: int


@dataclass(frozen=True)
class System:
    """An autonomous system of ODEs.

    Attributes:
        slope: states (..., D) to derivatives (..., D).
        low: lowest initial state.
        high: highest initial state; between them they are drawn evenly.
        units: what its parts are. Where only D/2 of them are measured, the others are the measured
            ones' velocities.
        first: where the first trajectory to train on starts, if that is not drawn.
    """

    slope: Callable[[Array], Array]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: Units
    first: tuple[float, ...] | None = None


def solve(system: System, starts: Array, times: Array) -> Array:
    """The flow, to a relative error of about 1e-10.

    Args:
        system: what flows.
        starts: shape (N, D).
        times: ascending, the first one that of the starts, shape (T,).

    Returns:
        States of shape (N, T, D).
    """
    from scipy.integrate import solve_ivp

    def slope(t: float, flat: Array) -> Array:
        return system.slope(flat.reshape(starts.shape)).ravel()

    found = solve_ivp(
        slope, (times[0], times[-1]), starts.ravel(), "DOP853", times, rtol=1e-11, atol=1e-12
    )
    states: Array = found.y.reshape(*starts.shape, len(times)).transpose(0, 2, 1)
    return states


def _spiral(x: Array) -> Array:
    slope: Array = x**3 @ np.array([[-0.1, 2.0], [-2.0, -0.1]])
    return slope


def _lotka_volterra(x: Array) -> Array:
    prey, predators = x[..., 0], x[..., 1]
    return np.stack([1.5 * prey - prey * predators, prey * predators - 3.0 * predators], axis=-1)


def _pendulum(x: Array) -> Array:
    angle, velocity = x[..., 0], x[..., 1]
    return np.stack([velocity, -9.81 * np.sin(angle) - 0.3 * velocity], axis=-1)


def _van_der_pol(x: Array) -> Array:
    position, velocity = x[..., 0], x[..., 1]
    return np.stack([velocity, (1.0 - position**2) * velocity - position], axis=-1)


SYSTEMS = {
    "spiral": System(
        _spiral,
        (0.6, -1.3),
        (1.7, 1.3),
        Units(("x", "y"), (0.0, 0.0), (1.0, 1.0), unit=0.25, time="time", measured=2),
        first=(2.0, 0.0),
    ),
    "lotka_volterra": System(
        _lotka_volterra,
        (1.0, 0.5),
        (5.0, 3.0),
        Units(("prey", "predators"), (3.0, 1.5), (2.0, 1.0), unit=0.5, time="time", measured=2),
    ),
    "pendulum": System(
        _pendulum,
        (-2.0, -2.0),
        (2.0, 2.0),
        Units(
            ("angle (rad)", "angular velocity (rad/s)"),
            (0.0, 0.0),
            (0.8, 2.4),
            unit=0.3,
            time="time (s)",
            measured=1,
        ),
    ),
    "van_der_pol": System(
        _van_der_pol,
        (-2.5, -2.5),
        (2.5, 2.5),
        Units(("position", "velocity"), (0.0, 0.0), (1.4, 1.4), unit=1.0, time="time", measured=2),
    ),
}
