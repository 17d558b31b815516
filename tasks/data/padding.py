"""Series of unequal lengths that are stored padded to equal ones, as re-issues of archives are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST = 0.5
"""Share of cases that must end alike: a signal may rest for a step or two, padding goes on."""


def unpadded(values: Floats, lengths: Ints, parts: Sequence[int]) -> tuple[Floats, Ints, str]:
    """Series without the steps before and after them that only fill them up.

    Where all cases of a part are equally long, although the data set is known for unequal lengths,
    steps at either end at which every channel is missing or zero are taken off, and likewise those
    at the end that repeat the last one, if most cases of the part end so. Where lengths differ,
    missing steps at the beginning are, if most cases begin so.

    Args:
        values: shape (N, T, C), NaN where nothing was observed and after the end.
        lengths: grid points of each series, shape (N,).
        parts: cases of each part, one after the other.

    Returns:
        Values and lengths, and what the provenance should go on with; empty where nothing was done.
    """
    lengths = lengths.copy()
    starts = np.zeros_like(lengths)
    kinds: list[str] = []
    begin = 0
    for count in parts:
        part = slice(begin, begin + count)
        begin += count
        stored = np.arange(values.shape[1]) < lengths[part, None]
        missing = np.isnan(values[part]).all(axis=2)
        if len(np.unique(lengths[part])) > 1:
            # A length is up to the last observation, so missing steps show at the beginning only.
            first = (~missing).argmax(axis=1)
            if (first > 0).mean() > MOST:
                kinds.append("missing steps")
                starts[part], lengths[part] = first, lengths[part] - first
            continue
        empty = ((values[part] == 0) | np.isnan(values[part])).all(axis=2) | ~stored
        if empty.all(axis=1).any():
            continue  # a case that would have nothing left
        first = (~empty).argmax(axis=1)
        last = values.shape[1] - (~empty[:, ::-1]).argmax(axis=1)
        if ((first > 0) | (last < lengths[part])).any():
            kinds.append("zeros")
        repeated = _without_repeats(values[part], last)
        if (repeated < last).mean() > MOST:
            kinds.append("repeats of the last value")
            last = repeated
        starts[part], lengths[part] = first, last - first
    if not kinds:
        return values, lengths, ""
    longest = int(lengths.max())
    places = np.minimum(starts[:, None] + np.arange(longest), values.shape[1] - 1)
    moved = np.take_along_axis(values, places[..., None], axis=1)
    moved[np.arange(longest) >= lengths[:, None]] = np.nan
    text = " and ".join(sorted(set(kinds), reverse=True))
    return moved, lengths, f"; stored padded with {text} to equal lengths, which were taken off"


def _without_repeats(values: Floats, ends: Ints) -> Ints:
    """One past the first of the equal steps that each case ends with."""
    cases = np.arange(len(values))
    final = values[cases, ends - 1][:, None]
    same = ((values == final) | (np.isnan(values) & np.isnan(final))).all(axis=2)
    same |= np.arange(values.shape[1]) >= ends[:, None]
    run = (~same[:, ::-1]).argmax(axis=1)
    run = np.where(same.all(axis=1), values.shape[1], run)
    kept: Ints = np.minimum(ends, values.shape[1] - run + 1)
    return kept
