"""Checks that data are what they should be; each failure is one :class:`DataError`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.errors import DataError

ALGORITHMS = ("md5", "sha256")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """A file's checksum as ``algorithm:hex``.

    Args:
        path: the file.
        algorithm: ``md5`` (what most official sources publish) or ``sha256``.

    Raises:
        DataError: it cannot be read.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: must be one of {', '.join(ALGORITHMS)}.")
    try:
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error


def verify(path: Path, expected: str, remedy: str) -> None:
    """Compare a file with its known checksum.

    Args:
        path: the file.
        expected: ``md5:...`` or ``sha256:...``.
        remedy: what to type to put it right, a sentence.

    Raises:
        DataError: they differ.
    """
    found = digest(path, expected.partition(":")[0])
    if found != expected:
        size = path.stat().st_size
        raise DataError(
            f"{path} ({size} bytes) is damaged or not the official file: expected {expected}, "
            f"found {found}. {remedy}"
        )


def require_finite(where: object, values: NDArray[Any]) -> None:
    """Raise a :class:`DataError` for NaN or infinite values, with the first one's place."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{where}: {int(bad.sum())} of {values.size} values are NaN or infinite, the first at "
            f"index {first}."
        )


def require_shape(where: object, values: NDArray[Any], expected: Sequence[int | None]) -> None:
    """Raise a :class:`DataError` unless the shape is ``expected``; ``None`` fits any size."""
    fits = len(values.shape) == len(expected) and all(
        want in (None, have) for want, have in zip(expected, values.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("any" if want is None else str(want) for want in expected) + ")"
        raise DataError(f"{where}: expected an array of shape {wanted}, found {values.shape}.")
    if values.size == 0:
        raise DataError(f"{where}: empty, shape {values.shape}.")


def require_classes(where: object, labels: NDArray[np.integer[Any]], classes: int) -> None:
    """Raise a :class:`DataError` unless labels are 0 to ``classes - 1`` and each one occurs."""
    found = np.unique(labels)
    outside = found[(found < 0) | (found >= classes)]
    if outside.size:
        raise DataError(
            f"{where}: labels must be 0 to {classes - 1}, found {outside.tolist()[:10]}."
        )
    missing = np.setdiff1d(np.arange(classes), found)
    if missing.size:
        raise DataError(
            f"{where}: no sample of class {missing.tolist()[:10]}, though there must be samples of "
            f"all {classes}."
        )


def require_varied(where: object, rows: NDArray[Any]) -> None:
    """Raise a :class:`DataError` unless every column of a table holds more than one value."""
    constant = np.flatnonzero((rows == rows[:1]).all(axis=0))
    if constant.size:
        raise DataError(
            f"{where}: column {constant[0]} is {rows[0, constant[0]]} in all {len(rows)} rows, "
            "which no measurement is. The file is damaged, or not the official one; fetch it again."
        )


def require_floats(where: object, values: NDArray[Any]) -> None:
    """Raise a :class:`DataError` unless values are stored in floating point."""
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(
            f"{where}: expected floating-point numbers, found {values.dtype}, so it is not the "
            "official file, or has been rounded. Fetch it again."
        )


def fingerprint(*arrays: NDArray[Any]) -> str:
    """A digest of values and shapes, whatever their precision and order in memory."""
    found = hashlib.sha256()
    for array in arrays:
        if np.issubdtype(array.dtype, np.floating):
            # One NaN, and one zero.
            values = np.where(np.isnan(array), np.nan, array).astype("<f8") + 0.0
        else:
            values = array.astype("<i8")
        found.update(str(values.shape).encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]


def require_published(where: object, expected: str, *arrays: NDArray[Any]) -> None:
    """Raise a :class:`DataError` unless values have the :func:`fingerprint` of the published."""
    if fingerprint(*arrays) != expected:
        raise DataError(
            f"{where}: the values are not the published ones, though their shape is. The file is "
            "damaged, or made from other data; fetch it again from where it is published."
        )
