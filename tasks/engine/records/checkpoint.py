"""Checkpoints: everything that decides what a run computes next, in one sealed file.

A digest of the file stands at its end, since torch reads damaged tensors without a word. Files of
format 1 have none; in them the checksums of their zip archive are looked at.
"""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from tasks.common.files import atomic_write
from tasks.engine.records.results import ResultsError, wrap_os_error

FORMATS = (1, 2)
_MARK = b"sha256:"
_SEAL_BYTES = len(_MARK) + hashlib.sha256().digest_size


class _Hashed:
    """Writes to a file and keeps the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint, whole or not at all.

    Args:
        path: the checkpoint file.
        state: tensors, numbers, strings and nested dicts, lists and tuples of them.

    Raises:
        ResultsError: it could not be written; the one before is intact.
    """
    with wrap_os_error("write", path), atomic_write(path) as file:
        hashed: Any = _Hashed(file)
        try:
            torch.save({"format": FORMATS[-1], **state}, hashed)
        except RuntimeError as error:
            # A full disk breaks torch's archive writer, which hides the cause one level down.
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None
        file.write(_MARK + hashed.digest.digest())


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or ``None`` where there is none.

    Raises:
        ResultsError: the file is damaged, or not a checkpoint that this version can read.
    """
    try:
        content = path.read_bytes()
        body, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        is_sealed = seal.startswith(_MARK)
        if is_sealed and seal != _MARK + hashlib.sha256(body).digest():
            raise ValueError("its digest does not fit, so it was changed or damaged")
        if not is_sealed:
            body = content
            _require_checksums(body)
        state: Any = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # of a damaged file, almost anything
        raise ResultsError(
            f"could not read the checkpoint {path}: {error}. {remedy(path)}"
        ) from error
    version = state.get("format") if isinstance(state, dict) else None
    if version not in FORMATS:
        raise ResultsError(
            f"{path} has checkpoint format {version}, this version reads "
            f"{' and '.join(map(str, FORMATS))}. {remedy(path)}"
        )
    if version > 1 and not is_sealed:
        raise ResultsError(
            f"could not read the checkpoint {path}: the digest at its end is missing, so it was "
            f"cut or changed. {remedy(path)}"
        )
    return dict(state)


def _require_checksums(content: bytes) -> None:
    """Raise unless every member of a zip archive has the checksum that the archive says."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"its part {broken} is damaged")


def remedy(path: Path) -> str:
    """What to do about a checkpoint that cannot be used, a sentence."""
    return (
        f"Restore it from a copy, or remove the folder {path.parent} to start the run from scratch."
    )


def seed_globally(seed: int) -> None:
    """Seed the generators that belong to no stream: torch's, Python's and numpy's own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(noise: torch.Generator) -> dict[str, Any]:
    """The state of every generator that training may draw from.

    Args:
        noise: the task's own stream.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "noise": noise.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def load_random_state(state: dict[str, Any], noise: torch.Generator) -> None:
    """Set every generator to what :func:`random_state` returned.

    A state of another device's generator is left out: there, the stream goes on from its seed.
    """
    if state["noise"].shape == noise.get_state().shape:
        noise.set_state(state["noise"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
