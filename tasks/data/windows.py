"""Windows of irregularly sampled points, cut from long measurements as published."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Windows = tuple[NDArray[np.floating[Any]], ...]
"""Arrays with one window in each row: inputs, gaps, targets."""

WINDOW, FORECAST = 64, 8
STRIDE = 16


def vibration_windows(
    values: NDArray[np.float64], *, whole: bool = False
) -> tuple[Windows, Windows, Windows]:
    """Train, validation and test windows of the plane vibration series.

    A tenth of the points is left out at random; what remains is split 2:1:1 in time and cut into
    groups of 65 points. Of each, points 0 to 63 are seen and 1 to 64 are to be followed; the
    forecast is 8 points of the complete series from point 64 on.

    Args:
        values: the series, shape (N, C).
        whole: standardise with the mean and deviation of the whole series, as published, instead of
            those of the training part.

    Returns:
        For each part (points (S, 64, C), gaps to the next point in sampling intervals (S, 64),
        targets (S, 136, C): points, next points, forecast).

    Source: Xia et al. 2021, the released code, with its seed.
    """
    usable = len(values) - 100
    kept = np.random.RandomState(1).choice(usable, int(0.9 * usable), replace=False)
    kept.sort()
    ends = [len(kept) // 2, len(kept) // 2 + len(kept) // 4]
    known = values if whole else values[: kept[ends[0] - 1] + 1]
    scaled = (values - known.mean(axis=0)) / known.std(axis=0)

    def part(labels: NDArray[np.int64]) -> Windows:
        count = len(labels) // (WINDOW + 1)
        groups = labels[: count * (WINDOW + 1)].reshape(count, WINDOW + 1)
        seen, following = scaled[groups[:, :-1]], scaled[groups[:, 1:]]
        ahead = scaled[groups[:, -1:] + np.arange(FORECAST)]
        gaps = np.diff(groups, axis=1).astype(np.float64)
        return seen, gaps, np.concatenate([seen, following, ahead], axis=1)

    train, valid, test = np.split(kept, ends)
    return part(train), part(valid), part(test)


def walker_windows(rollouts: list[NDArray[np.float32]]) -> tuple[Windows, Windows, Windows]:
    """Train, validation and test windows of the Walker2d roll-outs.

    Roll-outs are shuffled; the first 15 % are the test part, the next 10 % the validation part. A
    tenth of each one's frames is left out at random. Windows of 64 frames start every 16.

    Args:
        rollouts: frames of shape (F, 17), in the order of the file names.

    Returns:
        For each part (frames (S, 64, 17), gaps to the frame before in units of 64 frames (S, 64),
        the frame after each one, left out or not (S, 64, 17)).

    Source: Lechner and Hasani 2020, with its seeds.
    """
    order = list(range(len(rollouts)))
    np.random.RandomState(125487).shuffle(order)
    ends = [int(0.15 * len(order)), int(0.25 * len(order))]
    test, valid, train = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    rng = np.random.RandomState(891374)  # one generator, for the parts in this order
    return (
        _walker_part([rollouts[i] for i in train], rng),
        _walker_part([rollouts[i] for i in valid], rng),
        _walker_part([rollouts[i] for i in test], rng),
    )


def _walker_part(rollouts: list[NDArray[np.float32]], rng: np.random.RandomState) -> Windows:
    frames, gaps, following = [], [], []
    for rollout in rollouts:
        kept = np.flatnonzero(rng.rand(len(rollout) - 1) < 0.9)
        gap = np.diff(kept, prepend=-1).astype(np.float32) / WINDOW
        for start in range(0, len(kept) - WINDOW, STRIDE):
            rows = kept[start : start + WINDOW]
            frames.append(rollout[rows])
            gaps.append(gap[start : start + WINDOW])
            following.append(rollout[rows + 1])
    return np.stack(frames), np.stack(gaps), np.stack(following)
