"""Reads time series of the UEA archive: ``.ts`` files, on their own, zipped, or inside sktime."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.cache import prepared
from tasks.data.download import obtain
from tasks.data.errors import DataError
from tasks.data.integrity import digest, fingerprint, require_classes
from tasks.data.padding import unpadded
from tasks.data.ts_file import MOST_BYTES, read_ts
from tasks.data.unpack import member_names, unpack

#: Data sets that ship inside sktime.
EMBEDDED = ("BasicMotions", "JapaneseVowels")
WHOLE_ARCHIVE = "Multivariate2018_ts.zip"
_SITES = (
    "https://www.timeseriesclassification.com/aeon-toolkit/",
    "https://timeseriesclassification.com/aeon-toolkit/",
)
#: Said of values that are none of those that are known: a re-issue, or a damaged file.
ANOTHER_COPY = "not the copy known to this suite: other values, or another order"
_VERSION = 1  # of what is kept under a source's checksum


@dataclass(frozen=True)
class TimeSeries:
    """Labelled series on a common regular grid, the source's training cases first.

    Attributes:
        values: float64 of shape (N, T, C), NaN where nothing was observed and after the end.
        lengths: grid points of each series, int64 of shape (N,).
        labels: int64 of shape (N,).
        classes: number of classes.
        provenance: one sentence on where the data come from.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: int
    provenance: str


@dataclass(frozen=True)
class Facts:
    """What a data set must contain; the archive publishes no checksums.

    Attributes:
        cases: training and test cases, each combination that is in circulation.
        channels: channels of a case.
        classes: classes.
        longest: longest series, up to.
        shortest: shortest series; the same as ``longest`` where all are equally long.
        known: fingerprints of the copies that this suite was tested with.
    """

    cases: tuple[tuple[int, int], ...]
    channels: int
    classes: int
    longest: int
    shortest: int | None = None
    known: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether series are known to differ in length."""
        return self.shortest is not None and self.shortest < self.longest


FACTS = {
    "ArticularyWordRecognition": Facts(((275, 300),), 9, 25, 144, 144, ("e46733bcd0525afd",)),
    "BasicMotions": Facts(((40, 40),), 6, 4, 100, 100, ("9f94ec896ea36503",)),
    "CharacterTrajectories": Facts(((1422, 1436),), 3, 20, 182, 60, ("ab98f66bb86130e4",)),
    "JapaneseVowels": Facts(((270, 370),), 12, 9, 29, 7, ("8af565f41f2437a9",)),
    # The archive's copy has lost one training and one test case of UCI's original.
    "SpokenArabicDigits": Facts(((6600, 2200), (6599, 2199)), 13, 10, 93, 4, ("803640eca2c63798",)),
}


def read_uea(name: str, root: Path) -> TimeSeries:
    """Both official parts of a data set, joined.

    Args:
        name: the archive's name, such as ``JapaneseVowels``.
        root: has ``uea/<name>/<name>_TRAIN.ts`` and ``_TEST.ts``, or ``uea/<name>.zip``, or
            ``uea/Multivariate2018_ts.zip``; otherwise the data set comes from sktime, or is
            downloaded to ``uea/<name>.zip``.

    Raises:
        DataError: the data are missing and cannot be had, damaged, or not what they should be.
    """
    folder = root / "uea" / name
    parts = [folder / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    if all(path.is_file() for path in parts):
        return _from_parts(name, parts, folder)
    embedded = _embedded(name)
    whole = root / "uea" / WHOLE_ARCHIVE
    archive = root / "uea" / f"{name}.zip"
    if not archive.is_file():
        if whole.is_file():
            return _from_archive(name, whole)
        if embedded is not None:
            return _check(name, embedded, _parse(embedded))
    urls = [f"{site}{name}.zip" for site in _SITES]
    obtain(urls, archive, None, check=partial(_require_parts, name))
    return _from_archive(name, archive)


def _embedded(name: str) -> list[Path] | None:
    if name not in EMBEDDED:
        return None
    # Found without importing sktime, which takes seconds; the reader does that.
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        raise DataError(f"{name} ships inside sktime, which is missing: pip install sktime")
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    return [folder / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]


@contextmanager
def _unpacked(name: str, archive: Path) -> Iterator[list[Path]]:
    """Both parts of a data set, out of an archive."""
    found = {Path(member).name: member for member in member_names(archive)}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
        for path in paths:
            if path.name not in found:
                raise DataError(f"{archive}: has no {path.name}. Delete it and run again.")
        unpack(archive, {found[path.name]: path for path in paths}, MOST_BYTES)
        yield paths


def _require_parts(name: str, archive: Path) -> None:
    """Raise a :class:`DataError` unless an archive is whole and has both parts."""
    with _unpacked(name, archive):
        pass


def _from_archive(name: str, archive: Path) -> TimeSeries:
    def build() -> dict[str, NDArray[Any]]:
        with _unpacked(name, archive) as paths:
            return _parse(paths, archive)

    key = f"{name}-{digest(archive).removeprefix('sha256:')[:16]}-{_VERSION}"
    return _check(name, archive, prepared(archive.parent, key, build))


def _from_parts(name: str, parts: list[Path], folder: Path) -> TimeSeries:
    sums = "-".join(digest(path).removeprefix("sha256:")[:16] for path in parts)
    key = f"{name}-{sums}-{_VERSION}"
    return _check(name, folder, prepared(folder, key, lambda: _parse(parts)))


def _parse(paths: list[Path], source: Path | None = None) -> dict[str, NDArray[Any]]:
    """The joined parts as arrays; ``source`` is named in messages instead of unpacked files."""
    read = [read_ts(path, path if source is None else f"{source}/{path.name}") for path in paths]
    names = read[0].class_names
    if read[1].class_names != names:
        raise DataError(f"{source or paths[1]}: the parts declare different classes.")
    widths = {part.values.shape[2] for part in read}
    if len(widths) > 1:
        raise DataError(f"{source or paths[1]}: the parts have {sorted(widths)} channels.")
    longest = max(part.values.shape[1] for part in read)
    padded = [
        np.pad(
            part.values,
            ((0, 0), (0, longest - part.values.shape[1]), (0, 0)),
            constant_values=np.nan,
        )
        for part in read
    ]
    return {
        "values": np.concatenate(padded),
        "lengths": np.concatenate([part.lengths for part in read]),
        "labels": np.concatenate([part.labels for part in read]),
        "classes": np.array(len(names)),
        "cases": np.array([len(part.labels) for part in read]),
    }


def _check(name: str, source: object, arrays: Any) -> TimeSeries:
    found = tuple(int(n) for n in arrays["cases"])
    series = TimeSeries(
        arrays["values"],
        arrays["lengths"],
        arrays["labels"],
        int(arrays["classes"]),
        f"complete; official {found[0]} and {found[1]} cases joined and split anew",
    )
    where = f"{name} ({source})"
    require_classes(where, series.labels, series.classes)
    facts = FACTS.get(name)
    if facts is None:
        return series
    if facts.varies:
        values, lengths, note = unpadded(series.values, series.lengths, found)
        provenance = f"{series.provenance}{note}"
        series = replace(series, values=values, lengths=lengths, provenance=provenance)
    for what, have, expected in (
        ("channels", series.values.shape[2], (facts.channels,)),
        ("classes", series.classes, (facts.classes,)),
        ("training and test cases", found, facts.cases),
    ):
        if have not in expected:
            wanted = " or ".join(str(value) for value in expected)
            raise DataError(f"{where}: expected {wanted} {what}, found {have}.")
    if series.values.shape[1] > facts.longest:
        raise DataError(
            f"{where}: the longest series has {series.values.shape[1]} points, more than the "
            f"{facts.longest} of the official data."
        )
    if facts.known and fingerprint(series.values, series.lengths, series.labels) not in facts.known:
        series = replace(series, provenance=f"{series.provenance}; {ANOTHER_COPY}")
    return series
