"""Reads one ``.ts`` file through sktime and checks its content against its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.errors import DataError, brief

#: Of a file; the largest of the data sets here has 28 MB and 7000 lines.
MOST_BYTES, MOST_LINES = 64 << 20, 100_000


@dataclass(frozen=True)
class TsFile:
    """Content of a ``.ts`` file.

    Attributes:
        values: float64 of shape (N, T, C), NaN where missing and after the end.
        lengths: points of each case up to its last observation, int64 of shape (N,).
        labels: place of each case's class in ``class_names``, int64 of shape (N,).
        class_names: classes that the header declares, in its order.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_ts(path: Path, where: object | None = None) -> TsFile:
    """Read a multivariate classification problem.

    Cases may differ in length, and channels of a case too: a shorter channel counts as missing at
    its end.

    Args:
        path: the file.
        where: what messages call it; the path by default.

    Raises:
        DataError: the file is truncated, not in the format, or differs from its own header.
    """
    where = path if where is None else where
    _require_size(path, where)
    header = _header(path, where)
    declared = tuple(header.get("classlabel", ["false"])[1:])
    if not declared:
        raise DataError(f"{where}: the header declares no classes (@classLabel true ...).")
    if len(set(declared)) < len(declared):  # sktime reads names in lower case
        raise DataError(f"{where}: the header declares classes that differ in case at most.")
    cases, names = _cases(path, where)
    lengths = np.array([[len(channel) for channel in case] for case in cases])
    longest = int(lengths.max())
    values = np.full((*lengths.shape, longest), np.nan)
    try:
        flat = np.concatenate([np.asarray(c, dtype=np.float64) for case in cases for c in case])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: has values that are no numbers: {brief(error)}.") from error
    values[np.arange(longest) < lengths[:, :, None]] = flat
    values = values.transpose(0, 2, 1)
    # One past the last point with an observation, 0 without any.
    observed = np.where(np.isnan(values), 0, np.arange(1, longest + 1)[:, None])
    ends = observed.max(axis=(1, 2))
    _compare(where, header, values, lengths, ends)
    unknown = sorted(set(names) - set(declared))
    if unknown:
        raise DataError(f"{where}: class {unknown[0]!r} is not one that the header declares.")
    labels = np.array([declared.index(name) for name in names])
    return TsFile(values[:, : int(ends.max())], ends, labels, declared)


def _require_size(path: Path, where: object) -> None:
    """Raise a :class:`DataError` for a file whose reading would take forever."""
    try:
        size = path.stat().st_size
        lines = path.read_bytes().count(b"\n") if size <= MOST_BYTES else 0
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}.") from error
    if size > MOST_BYTES or lines > MOST_LINES:
        found = f"{size} bytes" if size > MOST_BYTES else f"{lines} lines"
        raise DataError(
            f"{where}: has {found}; refused. The official files have fewer: fetch it again."
        )


def _header(path: Path, where: object) -> dict[str, list[str]]:
    """Tags of the header in lower case, each with its words."""
    tags: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = line.strip().lower().split()
                if words and words[0] == "@data":
                    return tags
                if words and words[0].startswith("@"):
                    tags[words[0][1:]] = words[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be read: {error}.") from error
    raise DataError(f"{where}: truncated, or no .ts file: it has no @data line.")


def _cases(path: Path, where: object) -> tuple[Any, list[str]]:
    """Cases as sktime reads them, an object array (N, C) of series, and their class names."""
    from sktime.datasets import load_from_tsfile_to_dataframe

    try:
        frame, names = load_from_tsfile_to_dataframe(str(path))
    except Exception as error:  # sktime raises whatever its parser meets
        raise DataError(
            f"{where}: truncated, or not in the .ts format ({brief(error)})."
        ) from error
    if not len(frame):
        raise DataError(f"{where}: has no cases.")
    return frame.to_numpy(), [str(name) for name in names]


def _compare(
    where: object,
    header: dict[str, list[str]],
    values: NDArray[np.float64],
    lengths: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    """Raise a :class:`DataError` where the content is not what the header says."""
    if np.isinf(values).any():
        case, point, channel = (int(i) for i in np.argwhere(np.isinf(values))[0])
        raise DataError(f"{where}: infinite value, case {case}, point {point}, channel {channel}.")
    if (ends == 0).any():
        raise DataError(f"{where}: case {int(np.argmin(ends))} has no observation at all.")
    channels = header.get("dimensions", [""])[0]
    if channels.isdigit() and int(channels) != values.shape[2]:
        raise DataError(f"{where}: the header says {channels} channels, found {values.shape[2]}.")
    within = np.arange(values.shape[1])[None, :, None] < lengths[:, None, :]
    if header.get("missing") == ["false"] and (np.isnan(values) & within).any():
        case, point, channel = (int(i) for i in np.argwhere(np.isnan(values) & within)[0])
        raise DataError(
            f"{where}: the header says that nothing is missing, but case {case}, point {point}, "
            f"channel {channel} is."
        )
    found = sorted({int(n) for n in np.unique(lengths)})
    declared = header.get("serieslength", [""])[0]
    if declared.isdigit() and found != [int(declared)]:
        raise DataError(f"{where}: the header says length {declared}, found {_span(found)}.")
    if header.get("equallength") == ["true"] and len(found) > 1:
        raise DataError(f"{where}: the header says equal lengths, found {_span(found)}.")


def _span(lengths: list[int]) -> str:
    return f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
