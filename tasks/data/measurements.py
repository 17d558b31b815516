"""Readers of the measured and simulated dynamics: Silverbox, F-16 plane vibration, Walker2d."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.errors import DataError, brief
from tasks.data.integrity import (
    require_finite,
    require_floats,
    require_published,
    require_shape,
)
from tasks.data.unpack import read_bounded, read_npz

Floats = NDArray[np.float64]

SILVERBOX_ROWS = 131_072
F16_ROWS = 73_728
WALKER_CHANNELS = 17
WALKER_ROLLOUTS = 400

#: Fingerprints of the published values, by how many rows or roll-outs there are.
SILVERBOX = {131_072: "dff30d6fb077b8a8"}
F16 = {73_728: "3ef0a43be7de9fb0"}
WALKER = {400: "8b079e0b52e2744b"}

#: Bytes that a table may have unpacked, and the packed roll-outs; the published ones have 3.4 MB
#: at most, and 17.
MOST_CSV, MOST_NPZ = 16 << 20, 64 << 20


def read_silverbox(root: Path) -> Floats:
    """Input and output voltage of the Silverbox circuit, shape (131072, 2), columns V1 and V2.

    Args:
        root: has ``silverbox/SNLS80mV.csv`` or ``.csv.gz``, as the nonlinear benchmark website
            (nonlinearbenchmark.org) publishes it.

    Raises:
        DataError: the file is missing, damaged, or not what it should be.
    """
    path = _find(root / "silverbox", ("SNLS80mV.csv", "SNLS80mV.csv.gz"), "the Silverbox benchmark")
    values = _read_csv(path, ("V1", "V2"))
    _require_rows(path, values, (SILVERBOX_ROWS, 2), SILVERBOX)
    return values


def read_plane_vibration(root: Path) -> Floats:
    """Ground vibration test of an F-16 at 400 Hz, shape (73728, 5).

    Columns: force, voltage, and acceleration at three places.

    Args:
        root: has ``f16/F16Data_FullMSine_Level1.csv`` or ``.csv.gz``, out of the F-16 benchmark
            (nonlinearbenchmark.org).

    Raises:
        DataError: the file is missing, damaged, or not what it should be.
    """
    name = "F16Data_FullMSine_Level1.csv"
    path = _find(root / "f16", (name, f"{name}.gz"), "the F-16 ground vibration benchmark")
    columns = ("Force", "Voltage", "Acceleration1", "Acceleration2", "Acceleration3")
    values = _read_csv(path, columns)
    _require_rows(path, values, (F16_ROWS, 5), F16)
    return values


def read_walker2d(root: Path) -> list[NDArray[np.float32]]:
    """Roll-outs of a Walker2d policy, each of shape (frames, 17), sorted by file name.

    Args:
        root: has ``walker2d/walker2d_float32.npz`` (``data``, ``lengths``, ``names``), or the
            ``.npy`` files of the official ``walker.zip`` in ``walker2d/``.

    Raises:
        DataError: the files are missing, damaged, or not what they should be.
    """
    folder = root / "walker2d"
    packed = folder / "walker2d_float32.npz"
    try:
        if packed.is_file():
            data, lengths = read_npz(packed, ("data", "lengths"), MOST_NPZ)
            if lengths.sum() != len(data):
                raise DataError(
                    f"{packed}: the lengths add up to {lengths.sum()} frames, found {len(data)}."
                )
            rollouts = np.split(data, np.cumsum(lengths)[:-1])
        else:
            files = sorted(folder.glob("*.npy"))
            if not files:
                _find(folder, (packed.name,), "the Walker2d roll-outs (walker.zip of ODE-LSTM)")
            rollouts = [np.load(path, allow_pickle=False) for path in files]
    except DataError:
        raise
    except Exception as error:  # a damaged zip or NumPy header can raise almost anything
        raise DataError(
            f"{folder}: cannot be read: {brief(error)}. Fetch walker.zip again."
        ) from error
    if len(rollouts) != WALKER_ROLLOUTS:
        raise DataError(f"{folder}: expected {WALKER_ROLLOUTS} roll-outs, found {len(rollouts)}.")
    for index, rollout in enumerate(rollouts):
        require_shape(f"{folder}, roll-out {index}", rollout, (None, WALKER_CHANNELS))
        require_floats(f"{folder}, roll-out {index}", rollout)
        require_finite(f"{folder}, roll-out {index}", rollout)
    frames = [rollout.astype(np.float32) for rollout in rollouts]
    if len(frames) in WALKER:
        counts = np.array([len(rollout) for rollout in frames])
        require_published(folder, WALKER[len(frames)], np.concatenate(frames), counts)
    return frames


def _require_rows(
    path: Path, values: Floats, shape: tuple[int, int], published: Mapping[int, str]
) -> None:
    require_shape(path, values, shape)
    require_finite(path, values)
    if len(values) in published:
        require_published(path, published[len(values)], values)


def _find(folder: Path, names: Sequence[str], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder / names[0]} is missing. Put {what} there, or set data.root (or the environment's "
        "SNOPT_DATA) to the folder that has it."
    )


def _read_csv(path: Path, columns: Sequence[str]) -> Floats:
    """The first ``columns`` of a table whose header names them."""
    try:
        lines = read_bounded(path, MOST_CSV).decode().splitlines()
        header = [name.strip().strip('"') for name in (lines or [""])[0].split(",")]
        if header[: len(columns)] != list(columns):
            found = ", ".join(header)
            raise DataError(
                f"{path}: expected columns {', '.join(columns)}, found {found[:200] or 'none'}."
            )
        rows = [line for line in lines[1:] if line.strip().strip(",")]
        if not rows:
            raise DataError(f"{path}: has no rows below its header. Fetch it again.")
        return np.loadtxt(rows, delimiter=",", usecols=range(len(columns)), ndmin=2)
    except (OSError, ValueError, EOFError, IndexError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {brief(error)}. Fetch it again.") from error
