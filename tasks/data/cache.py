"""Keeps what takes long to prepare, beside the data or in the user's cache folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.common.files import atomic_write, may_write, sha256
from tasks.data.integrity import fingerprint

_DIGEST = "digest"

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


def prepared(beside: Path, key: str, build: Callable[[], Arrays]) -> Arrays:
    """Arrays under a key, built once.

    Args:
        beside: folder of the data; ``.prepared`` in it where it may be written to, otherwise the
            user's cache folder.
        key: names the content: the source's checksum and the version of the preparation.
        build: makes the arrays; their dtypes must not be ``object``.
    """
    path = _folder(beside) / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != _DIGEST}
            if _DIGEST in stored.files and str(stored[_DIGEST]) == _digest(key, arrays):
                return arrays
            logger.warning("%s has no digest that fits, and is made again", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # of a damaged file, almost anything
        logger.warning("%s cannot be read and is made again: %s", path, error)
    built = build()
    path = _folder(beside) / path.name  # the folder of the data may have been made by the build
    try:
        _write(path, {**built, _DIGEST: np.array(_digest(key, built))})
    except OSError as error:
        logger.warning("%s cannot be kept, and will be made again next time: %s", path, error)
    return built


def _digest(key: str, arrays: Arrays) -> str:
    """A digest of arrays, their names, and the source that they were made from."""
    parts = [f"{name} {fingerprint(arrays[name])}" for name in sorted(arrays)]
    return sha256(" ".join([key, *parts]).encode())


def _folder(beside: Path) -> Path:
    if may_write(beside):
        return beside / ".prepared"
    from platformdirs import user_cache_path

    return user_cache_path("snopt", appauthor=False) / "prepared"


def _write(path: Path, arrays: Arrays) -> None:
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
