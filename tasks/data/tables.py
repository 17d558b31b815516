"""Readers of the tables that flows are trained on: generated ones, GAS and MINIBOONE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.checkerboard import make_checkerboard
from tasks.data.circle import make_rings
from tasks.data.integrity import require_finite, require_shape, require_varied
from tasks.data.maf import read_gas_rows, read_miniboone_rows

Rows = NDArray[np.float64]

DIMENSIONS = {"checkerboard": 2, "circle": 2, "gas": 8, "miniboone": 43}


@dataclass(frozen=True)
class TabularData:
    """Rows of features, split and standardised.

    Attributes:
        train: float64 of shape (N, D).
        valid: likewise.
        test: likewise.
        provenance: one sentence on where the data come from.
    """

    train: Rows
    valid: Rows
    test: Rows
    provenance: str = "complete"


#: Points of a generated table: to train, to validate, to test.
GENERATED = (16384, 4096, 8192)


def generated(make: Callable[[int, int], Rows]) -> Callable[[Path, int], TabularData]:
    """The reader of a table that is made from the seed, in the sizes of :data:`GENERATED`.

    Args:
        make: makes so many points from a seed.
    """

    def read(root: Path, seed: int) -> TabularData:
        train, valid, test = np.split(make(sum(GENERATED), seed), np.cumsum(GENERATED)[:-1])
        return TabularData(train, valid, test, "synthetic by nature: generated from the seed")

    return read


def read_miniboone(root: Path, seed: int) -> TabularData:
    """MINIBOONE as MAF prepares it; see :func:`tasks.data.maf.read_miniboone_rows`."""
    return _checked("miniboone", TabularData(*read_miniboone_rows(root)))


def read_gas(root: Path, seed: int) -> TabularData:
    """GAS as MAF prepares it; see :func:`tasks.data.maf.read_gas_rows`."""
    return _checked("gas", TabularData(*read_gas_rows(root)))


def _checked(name: str, table: TabularData) -> TabularData:
    for part in ("train", "valid", "test"):
        rows = getattr(table, part)
        require_shape(f"{name}, {part}", rows, (None, DIMENSIONS[name]))
        require_finite(f"{name}, {part}", rows)
        require_varied(f"{name}, {part}", rows)
    return table


READERS: dict[str, Callable[[Path, int], TabularData]] = {
    "checkerboard": generated(make_checkerboard),
    "circle": generated(make_rings),
    "gas": read_gas,
    "miniboone": read_miniboone,
}
