"""Measured trajectories: the flow is the system's, and segments say what was measured of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from tasks.data.errors import DataError
from tasks.data.hare_lynx import hare_lynx
from tasks.data.systems import SYSTEMS, solve
from tasks.data.trajectories import Sampling, cut, simulated, with_velocity

SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "spiral": lambda s: (-0.1 * s[0] ** 3 - 2 * s[1] ** 3, 2 * s[0] ** 3 - 0.1 * s[1] ** 3),
    "lotka_volterra": lambda s: (s[0] * (1.5 - s[1]), s[1] * (s[0] - 3)),
    "pendulum": lambda s: (s[1], -9.81 * s[0].sin() - 0.3 * s[1]),
    "van_der_pol": lambda s: (s[1], (1 - s[0] ** 2) * s[1] - s[0]),
}
"""The systems again, in torch."""


def drawn(name: str, count: int = 3) -> np.ndarray:
    system = SYSTEMS[name]
    return np.random.default_rng(1).uniform(system.low, system.high, (count, len(system.low)))


def test_every_system_is_written_twice() -> None:
    assert SLOPES.keys() == SYSTEMS.keys()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_truth_is_torchdiffeq_s(name: str) -> None:
    times, starts = np.linspace(0.0, 3.0, 7), drawn(name)
    found = solve(SYSTEMS[name], starts, times)
    for start, states in zip(torch.tensor(starts), torch.tensor(found), strict=True):
        tight = {"rtol": 1e-11, "atol": 1e-11}
        expected = odeint(
            lambda t, s: torch.stack(SLOPES[name](s)), start, torch.tensor(times), **tight
        )
        torch.testing.assert_close(states, expected, rtol=1e-8, atol=1e-8)


def test_lotka_volterra_goes_in_circles() -> None:
    x, y = np.moveaxis(
        solve(SYSTEMS["lotka_volterra"], drawn("lotka_volterra"), np.linspace(0, 20, 50)), 2, 0
    )
    level = x - 3 * np.log(x) + y - 1.5 * np.log(y)
    assert np.abs(level / level[:, :1] - 1).max() < 1e-8


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize("name", ["spiral", "lotka_volterra", "van_der_pol"])
def test_targets_are_the_flow_of_the_start(name: str, irregular: bool) -> None:
    sampling = Sampling(2.0, 9, irregular=irregular, segment=4)
    found = simulated(SYSTEMS[name], sampling, 3, np.random.default_rng(0))
    assert found.targets.shape == (3 * 6, 3, 2)
    for start, times, targets in zip(found.start, found.times, found.targets, strict=True):
        expected = solve(SYSTEMS[name], start[None], np.array([0.0, *times]))[0, 1:]
        assert targets == pytest.approx(expected, abs=1e-7)
    gaps = np.diff(found.times, axis=1)
    assert gaps.min() > 0
    assert (np.ptp(gaps) > 0.01) == irregular


def test_the_pendulum_s_velocity_is_estimated_from_past_angles() -> None:
    sampling = Sampling(2.0, 201, segment=5)
    found = simulated(SYSTEMS["pendulum"], sampling, 4, np.random.default_rng(0))
    assert found.start.shape == (4 * (201 - 2 - 4), 2)  # no velocity in the first two rows
    for start, times, targets in zip(found.start, found.times, found.targets, strict=True):
        expected = solve(SYSTEMS["pendulum"], start[None], np.array([0.0, *times]))[0, 1:]
        assert targets == pytest.approx(expected, abs=0.02)


def test_velocities_of_a_parabola_are_exact() -> None:
    times = np.array([0.0, 0.3, 0.4, 1.0, 1.1])
    positions = (2 - times + 3 * times**2)[:, None]
    positions[-1] = np.nan
    found = with_velocity(times, positions)
    assert found[2:4, 1] == pytest.approx(-1 + 6 * times[2:4])
    assert np.isnan(found[[0, 1, 4], 1]).all()
    positions[-1] = 1e9  # what comes later does not count
    assert found[:4, 1] == pytest.approx(with_velocity(times, positions)[:4, 1], nan_ok=True)


def test_segments_are_slices() -> None:
    times, states = np.arange(6.0) ** 2, np.arange(12.0).reshape(6, 2)
    found = cut(times, states, 3)
    assert found.start.tolist() == states[:4].tolist()
    assert found.times[1].tolist() == [3.0, 8.0]
    assert found.targets[3].tolist() == states[4:].tolist()
    apart = cut(times, states, 3, "apart")
    assert apart.start.tolist() == states[[0, 2]].tolist()
    whole = cut(times, states, None)
    assert whole.times.tolist() == [(times[1:]).tolist()]
    states[2, 1] = np.nan  # such a row is a target, but no start
    assert cut(times, states, 3).start.tolist() == states[[0, 1, 3]].tolist()


def test_noise_and_missing_values_are_as_many_as_asked_for() -> None:
    system = SYSTEMS["van_der_pol"]
    sampling = Sampling(5.0, 201, noise=0.1, missing=0.25)
    noisy = simulated(system, sampling, 20, np.random.default_rng(0))
    clean = simulated(system, Sampling(5.0, 201), 20, np.random.default_rng(0))
    assert np.isnan(noisy.targets[:, 2:]).mean() == pytest.approx(0.25, abs=0.02)
    assert np.nanstd(noisy.targets - clean.targets) == pytest.approx(0.14, rel=0.05)
    assert not np.array_equal(noisy.start, clean.start)  # a start is measured too
    again = simulated(system, sampling, 20, np.random.default_rng(0))
    assert np.array_equal(noisy.targets, again.targets, equal_nan=True)


def test_too_much_missing_is_said() -> None:
    sampling = Sampling(5.0, 6, missing=0.999, segment=4)
    found = simulated(SYSTEMS["spiral"], sampling, 2, np.random.default_rng(0))
    assert len(found.start) == 2 * 3  # the first rows are always measured
    with pytest.raises(DataError, match=r"missing=0\.999: 2 trajectories of 50 points have no"):
        simulated(
            SYSTEMS["pendulum"],
            Sampling(5.0, 50, missing=0.999, segment=49),
            2,
            np.random.default_rng(0),
        )


def test_the_spiral_starts_as_in_the_demo() -> None:
    sampling = Sampling(25.0, 1000, segment=10)
    found = simulated(SYSTEMS["spiral"], sampling, 1, np.random.default_rng(0), first=True)
    assert found.start.shape == (991, 2)
    assert found.start[0].tolist() == [2.0, 0.0]


def test_hares_lead_lynx() -> None:
    counted = hare_lynx()
    assert counted.shape == (21, 2)
    assert counted.argmax(axis=0).tolist() == [3, 4]
    assert counted.mean(axis=0) == pytest.approx([34.08, 20.17], abs=0.005)
