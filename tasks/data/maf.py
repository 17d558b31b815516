"""Reads GAS and MINIBOONE out of the archive that was published with MAF.

Source: Papamakarios, Pavlakou and Murray, Masked Autoregressive Flow for Density Estimation, 2017;
data: doi 10.5281/zenodo.1161203.
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from tasks.data.cache import Arrays, prepared
from tasks.data.download import obtain
from tasks.data.errors import DataError, brief
from tasks.data.integrity import (
    require_finite,
    require_floats,
    require_shape,
    require_varied,
    verify,
)
from tasks.data.unpack import member_names, unpack

Rows = NDArray[np.float64]
Parts = tuple[Rows, Rows, Rows, str]

ARCHIVE = "data.tar.gz"
ARCHIVE_MD5 = "md5:9b9c9b0375315ad270eba4ce80c093ab"
URLS = (
    "https://zenodo.org/records/1161203/files/data.tar.gz?download=1",
    "https://zenodo.org/api/records/1161203/files/data.tar.gz/content",
)
MINIBOONE_ROWS = 36488
MINIBOONE_VALID, MINIBOONE_TEST = 3284, 3648
#: Mean, deviation and means weighted by column and by row of MAF's validation and test rows, by
#: how many there are; they tell that the rest is MAF's as well, which standardises them.
STATISTICS = {
    3284: (0.0030877080, 0.9934807215, -0.0010064807, -0.0004079992),
    3648: (-0.0029552297, 0.9950057559, 0.0010725894, 0.0018089244),
}
_VERSION = 1


def read_miniboone_rows(root: Path) -> Parts:
    """Train, validation and test rows of MINIBOONE, 43 columns, and their provenance.

    As in MAF the last tenth is the test part and the last tenth of the rest the validation part;
    all are standardised with the statistics of training and validation rows together.

    Args:
        root: has ``maf/miniboone/data.npy``, ``miniboone/data.npy``, or ``maf/data.tar.gz``; or
            only MAF's validation and test rows, ``miniboone/val.npy`` and ``test.npy``, of which
            the former is then split 90/10 for training and validation. Otherwise the archive
            (850 MB) is downloaded. What is read of it is kept in ``maf/.prepared``.

    Raises:
        DataError: a file is missing and cannot be had, damaged, or not what it should be.
    """
    plain = [root / "maf" / "miniboone" / "data.npy", root / "miniboone" / "data.npy"]
    for path in plain:
        if path.is_file():
            return _miniboone(_load(path), path)
    valid, test = root / "miniboone" / "val.npy", root / "miniboone" / "test.npy"
    archive = _archive(root)
    if not archive.is_file() and valid.is_file() and test.is_file():
        return _miniboone_subset(valid, test)

    def build() -> Arrays:
        obtain(URLS, archive, ARCHIVE_MD5)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.npy"
            unpack(archive, {_member(archive, "miniboone/data.npy"): path})
            return {"rows": _load(path)}

    key = f"miniboone-{ARCHIVE_MD5.removeprefix('md5:')[:16]}-{_VERSION}"
    return _miniboone(prepared(archive.parent, key, build)["rows"], archive)


def read_gas_rows(root: Path) -> Parts:
    """Train, validation and test rows of GAS, 8 columns, and their provenance.

    As in MAF the columns Meth, Eth and Time are dropped, then, one after the other, columns whose
    correlation with another is above 0.98; what remains is standardised and split as MINIBOONE.
    The source is a pickle, opened only out of an archive whose checksum is the known one.

    Args:
        root: has ``maf/data.tar.gz``; otherwise it (850 MB) is downloaded. What is read is kept in
            ``maf/.prepared``.

    Raises:
        DataError: the archive is missing and cannot be had, damaged, or not what it should be.
    """
    archive = _archive(root)

    def build() -> Arrays:
        obtain(URLS, archive, ARCHIVE_MD5)
        return {"rows": _open_gas(archive)}

    key = f"gas-{ARCHIVE_MD5.removeprefix('md5:')[:16]}-{_VERSION}"
    rows = prepared(archive.parent, key, build)["rows"]
    return *split_tenths(rows), "complete"


def split_tenths(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The last tenth for testing, the last tenth of the rest for validation."""
    test = int(0.1 * len(rows))
    valid = int(0.1 * (len(rows) - test))
    rest = len(rows) - test
    return rows[: rest - valid], rows[rest - valid : rest], rows[rest:]


def drop_correlated(rows: NDArray[np.float64], threshold: float = 0.98) -> NDArray[np.float64]:
    """Drop columns, the first one first, until no two correlate above ``threshold``."""
    while True:
        correlated = (np.corrcoef(rows, rowvar=False) > threshold).sum(axis=1) > 1
        if not correlated.any():
            return rows
        rows = np.delete(rows, int(correlated.argmax()), axis=1)


def _archive(root: Path) -> Path:
    return root / "maf" / ARCHIVE


def _member(archive: Path, ending: str) -> str:
    for name in member_names(archive):
        if name == ending or name.endswith("/" + ending):
            return name
    raise DataError(f"{archive}: has no {ending}.")


def _load(path: Path) -> Rows:
    try:
        with path.open("rb") as file:
            stored = np.lib.format.read_array(file, allow_pickle=False)
        rows: Rows = stored.astype(np.float64, casting="same_kind")
    except (OSError, ValueError, EOFError, TypeError, MemoryError) as error:
        raise DataError(
            f"{path}: truncated, or no NumPy array ({brief(error)}). Delete it and run again with "
            "a network, and it is taken from MAF's archive."
        ) from error
    require_floats(path, stored)
    require_shape(path, rows, (None, 43))
    require_finite(path, rows)
    require_varied(path, rows)
    return rows


def _miniboone(rows: Rows, path: Path) -> Parts:
    require_shape(path, rows, (MINIBOONE_ROWS, 43))
    train, valid, test = split_tenths(rows)
    known = np.concatenate([train, valid])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    parts = [(part - mean) / deviation for part in (train, valid, test)]
    _require_known(path, parts[1], parts[2])
    return parts[0], parts[1], parts[2], "complete"


def _require_known(where: object, *parts: Rows) -> None:
    """Raise a :class:`DataError` where standardised rows are not those that MAF has."""
    for part in parts:
        known = STATISTICS.get(len(part))
        across, along = np.linspace(-1, 1, 43), np.linspace(-1, 1, len(part))[:, None]
        found = (part.mean(), part.std(), (part * across).mean(), (part * along).mean())
        if known is not None and not np.allclose(found, known, rtol=0, atol=1e-6):
            raise DataError(
                f"{where}: the {len(part)} rows are not those of MAF's MINIBOONE, though as many. "
                "The file is damaged, or made from other data; take it from MAF's archive, "
                f"{URLS[0]}"
            )


def _miniboone_subset(valid_path: Path, test_path: Path) -> Parts:
    valid, test = _load(valid_path), _load(test_path)
    require_shape(valid_path, valid, (MINIBOONE_VALID, 43))
    require_shape(test_path, test, (MINIBOONE_TEST, 43))
    _require_known(valid_path, valid)
    _require_known(test_path, test)
    cut = len(valid) - len(valid) // 10
    return (
        valid[:cut],
        valid[cut:],
        test,
        f"subset: training and validation on MAF's {len(valid)} validation rows ({cut} and "
        f"{len(valid) - cut}), not its training rows; test complete",
    )


#: Modules whose names have changed since pandas 0.2 and NumPy 1.
_MOVED = (
    ("pandas.indexes", "pandas.core.indexes"),
    ("pandas.core.index", "pandas.core.indexes.base"),
    ("numpy.core", "numpy._core"),
)


class _Python2Unpickler(pickle.Unpickler):
    """Opens data frames that pandas wrote under Python 2, which pandas 3 itself no longer does."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings are bytes

    @override
    def find_class(self, module: str, name: str) -> Any:
        for old, new in _MOVED:
            if module == old or module.startswith(f"{old}."):
                module = new + module.removeprefix(old)
                break
        if name in ("Int64Index", "UInt64Index", "Float64Index"):  # one class since pandas 2
            module, name = "pandas.core.indexes.base", "Index"
        return super().find_class(module, name)


def _open_gas(archive: Path) -> Rows:
    import pandas as pd

    verify(archive, ARCHIVE_MD5, "Delete it and run again.")  # what the pickle is trusted for
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ethylene_CO.pickle"
        unpack(archive, {_member(archive, f"gas/{path.name}"): path})
        try:
            with path.open("rb") as file:
                frame = _Python2Unpickler(file).load()
            kept = frame.drop(columns=["Meth", "Eth", "Time"]).to_numpy(dtype=np.float64)
        except Exception as error:  # a pickle of another pandas can fail anywhere
            raise DataError(
                f"{archive}: {path.name} cannot be read by pandas {pd.__version__} "
                f"({brief(error)})."
            ) from error
    require_finite(f"{archive}: {path.name}", kept)
    rows = drop_correlated(kept)
    deviation = rows.std(axis=0, ddof=1)  # pandas' deviation, as in MAF
    return np.asarray((rows - rows.mean(axis=0)) / deviation)
