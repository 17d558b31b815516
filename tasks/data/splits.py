"""Stratified splits, the same on every machine and in every run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.errors import DataError

Indices = NDArray[np.int64]


def stratified_thirds(labels: NDArray[Any], where: object) -> tuple[Indices, Indices, Indices]:
    """Train, validation and test indices, 70/15/15, every class in proportion.

    The seeds are the paper's released code's, 0 and 1; the split does not depend on the run.

    Args:
        labels: class of each sample, shape (N,).
        where: the data set's name, for messages.

    Raises:
        DataError: a class is too small to be divided.
    """
    from sklearn.model_selection import train_test_split

    _require_two(labels, where)
    everything = np.arange(len(labels))
    try:
        train, rest = train_test_split(everything, train_size=0.7, random_state=0, stratify=labels)
        valid, test = train_test_split(rest, train_size=0.5, random_state=1, stratify=labels[rest])
    except ValueError as error:
        raise DataError(f"{where}: cannot be divided 70/15/15 by class: {error}") from error
    return train, valid, test


def hold_out(labels: NDArray[Any], count: int, where: object) -> tuple[Indices, Indices]:
    """Indices of what remains for training and of ``count`` held out, every class in proportion.

    Args:
        labels: class of each sample, shape (N,).
        count: samples to hold out.
        where: the data set's name, for messages.

    Raises:
        DataError: there are too few samples.
    """
    from sklearn.model_selection import train_test_split

    _require_two(labels, where)
    try:
        train, held = train_test_split(
            np.arange(len(labels)), test_size=count, random_state=0, stratify=labels
        )
    except ValueError as error:
        raise DataError(f"{where}: cannot hold out {count} samples: {error}") from error
    # In the official order, so that a subset of the first images stays one.
    return np.sort(train), np.sort(held)


def stratified_part(
    indices: Indices, labels: NDArray[Any], count: int | None, where: object
) -> Indices:
    """So many samples of a split, every class in proportion and none left out, in their order.

    A smaller part lies within a larger one.

    Args:
        indices: of the split's samples.
        labels: class of each sample of the data set, shape (N,).
        count: samples to keep; all of them where there are no more, or None.
        where: the data set's name, for messages.

    Raises:
        DataError: fewer samples than classes.
    """
    if count is None or count >= len(indices):
        return indices
    split = labels[indices]
    classes = np.unique(split)
    if count < len(classes):
        raise DataError(
            f"{where}: train_samples={count} leaves out some of the {len(classes)} classes. Take "
            f"{len(classes)} or more."
        )
    shuffled = np.random.RandomState(0).permutation(len(split))
    place = np.empty(len(split))  # in a random order of each class, from 0 to 1
    for one in classes:
        members = shuffled[split[shuffled] == one]
        place[members] = np.arange(len(members)) / len(members)
    kept: Indices = indices[np.sort(shuffled[np.argsort(place[shuffled], kind="stable")[:count]])]
    return kept


def _require_two(labels: NDArray[Any], where: object) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if counts.size == 0 or counts.min() < 2:
        smallest = classes[counts.argmin()] if counts.size else "any"
        raise DataError(f"{where}: fewer than 2 samples of class {smallest}; cannot be divided.")
