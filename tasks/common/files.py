"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def may_write(folder: Path) -> bool:
    """Whether a folder is there and is not meant to be left alone.

    Permission bits count too: an administrator may write everywhere.
    """
    return (
        folder.is_dir()
        and os.access(folder, os.W_OK)
        and bool(folder.stat().st_mode & stat.S_IWUSR)
    )


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name ``path`` when the block ends well.

    Until then, and after an error, what had that name is untouched. The file gets the rights that
    any new one does, so others read it where the user lets them.

    Args:
        path: the file to create or replace; its folder is made.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(content: bytes) -> str:
    """A digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
