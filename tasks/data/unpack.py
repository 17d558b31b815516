"""Takes files out of archives that are not trusted.

Only members that are asked for are written, to paths that the caller names, so nothing in an
archive chooses where it goes. An archive with a member that tries to is refused altogether.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.common.files import atomic_write
from tasks.data.errors import DataError, brief

#: Bytes that one member may grow to; the largest member of any data set here is 1.2 GB.
MOST_BYTES = 4 << 30


def member_names(archive: Path) -> list[str]:
    """Names of the regular files in a zip or tar archive.

    Raises:
        DataError: the archive is broken, or has a member that is refused: an absolute path, a path
            with ``..``, a link or a device.
    """
    with _opened(archive) as handle:
        return [name for name, _ in _members(archive, handle)]


def unpack(archive: Path, wanted: Mapping[str, Path], most: int | None = None) -> None:
    """Write members of a zip or tar archive to files, each complete or not at all.

    Args:
        archive: the zip or tar file, compressed in any way.
        wanted: member name to path; folders are made.
        most: bytes that a member may have unpacked, where its kind is known to be smaller than
            :data:`MOST_BYTES`.

    Raises:
        DataError: the archive is broken, lacks a member, or has one that is refused.
    """
    most = MOST_BYTES if most is None else most
    with _opened(archive) as handle:
        sizes = dict(_members(archive, handle))
        for name in wanted:
            if name not in sizes:
                raise DataError(f"{archive}: has no member {name}.")
            if sizes[name] > most:
                raise DataError(
                    f"{archive}: member {name} claims {sizes[name]} bytes; refused. The official "
                    f"one has less than {most}: delete {archive.name} and fetch it again."
                )
        for name, target in wanted.items():
            if isinstance(handle, zipfile.ZipFile):
                with handle.open(name) as source:
                    write_stream(source, target)
            else:
                stream = handle.extractfile(name)
                if stream is None:
                    raise DataError(f"{archive}: member {name} is not a file.")
                with stream:
                    write_stream(stream, target)


def gunzip(source: Path, target: Path) -> None:
    """Decompress a ``.gz`` file.

    Raises:
        DataError: it is broken.
    """
    try:
        with gzip.open(source) as stream:
            write_stream(stream, target)
    except DataError:
        raise
    except Exception as error:  # of a damaged archive, almost anything
        raise DataError(
            f"{source}: broken archive: {brief(error)}. Delete it and run again."
        ) from error


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file, decompressed where its name ends in ``.gz``.

    Raises:
        DataError: there is more of it than ``most`` bytes.
        OSError: it cannot be read, or is no gzip file.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise DataError(
            f"{path}: holds more than {most} bytes; refused. The official file has less: fetch it "
            "again."
        )
    return content


def read_npz(path: Path, names: Sequence[str], most: int) -> list[NDArray[Any]]:
    """Arrays of a NumPy archive, none of them of objects.

    Raises:
        DataError: it is broken, lacks an array, or unpacks to more than ``most`` bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > most:
            raise DataError(
                f"{path}: claims {size} bytes unpacked, more than the {most} that it may have; "
                "refused. Fetch it again."
            )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy each have their own
        raise DataError(f"{path}: cannot be read ({brief(error)}).") from error


class Readable(Protocol):
    """Anything that bytes can be read from."""

    def read(self, size: int = ..., /) -> bytes:
        """At most ``size`` bytes."""


def write_stream(source: Readable, target: Path) -> None:
    """Copy a stream to a file that appears when it is complete."""
    try:
        with atomic_write(target) as file:
            while block := _read(source):
                file.write(block)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error}.") from error


def _read(source: Readable) -> bytes:
    try:
        return source.read(1 << 20)
    except OSError as error:  # of a damaged member, not of the disk that is written to
        raise EOFError(str(error)) from error


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield zipped
        else:
            with tarfile.open(archive) as tarred:
                yield tarred
    except DataError:
        raise
    except Exception as error:  # of a damaged archive, almost anything
        raise DataError(
            f"{archive}: broken archive: {brief(error)}. Delete it and run again."
        ) from error


def _members(archive: Path, handle: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int]]:
    if isinstance(handle, zipfile.ZipFile):
        for info in handle.infolist():
            kind = info.external_attr >> 28  # the Unix file type, 0 where none is recorded
            if kind not in (0, 0o4, 0o10):
                raise DataError(f"{archive}: member {info.filename} is a link or device; refused.")
            _require_inside(archive, info.filename)
            if not info.is_dir():
                yield info.filename, info.file_size
        return
    for member in handle:
        _require_inside(archive, member.name)
        if not (member.isreg() or member.isdir()):
            raise DataError(f"{archive}: member {member.name} is a link or device; refused.")
        if member.isreg():
            yield member.name, member.size


def _require_inside(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        raise DataError(f"{archive}: member {name} points outside the archive; refused.")
