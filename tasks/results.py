"""The files of a run: what is written, where, and how a killed run is taken up again.

``config.yaml`` holds the resolved configuration, ``metrics.jsonl`` one row a measurement,
``run.json`` identity, outcome and totals, ``checkpoint.pt`` everything to resume. Files are
replaced whole; only the metrics grow, and a resumed run cuts them back to its checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import yaml

from tasks.files import written_whole
from tasks.settings import Settings, config_hash


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"  # all epochs or steps that were asked for
    TARGET_REACHED = "target_reached"  # the validation metric got to train.target
    BUDGET = "budget"  # train.max_seconds ran out
    DIVERGED = "diverged"  # a loss that is not finite, or a solve that failed
    INTERRUPTED = "interrupted"  # by a signal, or killed: the same command resumes
    ERROR = "error"  # anything else; the same command tries again


#: Outcomes that the same command does not run again.
FINISHED = (Outcome.COMPLETED, Outcome.TARGET_REACHED, Outcome.BUDGET, Outcome.DIVERGED)


class Row(TypedDict):
    """One measurement; a value that is not finite is written as null."""

    step: int
    epoch: int
    split: str
    metric: str
    value: float
    seconds: float
    wall: float
    nfe_forward: int
    nfe_backward: int


class ResultsError(RuntimeError):
    """A file of a run cannot be written or read; the message says which and what to do."""


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an operating system's error into a :class:`ResultsError` that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(
            f"could not {action} {path}: {reason}. What was saved there before is intact; free "
            "space or rights, or choose another results.root, and run the same command again."
        ) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file beside ``path`` and put it in its place, whole or not at all.

    Args:
        path: the file to create or replace.
        write: writes the content to the open file it is given.

    Raises:
        ResultsError: the disk is full, or the folder cannot be written to.
    """
    with explained("write", path), written_whole(path) as file:
        write(file)


def run_folder(settings: Settings) -> Path:
    """Where a configuration's run is kept: ``<root>/<task>/<model>/<optim>/<hash8>-s<seed>``."""
    root = Path(str(settings.config["results"]["root"])).expanduser()
    identity = f"{config_hash(settings.config)}-s{settings.seed}"
    return root.joinpath(*settings.names, identity)


class RunFolder:
    """The files of one run, held by one process at a time.

    Args:
        path: the run's folder, created where it is missing.

    Raises:
        ResultsError: the folder cannot be written to, or another process trains this run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained("create", path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ResultsError(
                f"another process is training this run: {path} is locked. Wait for it, or choose "
                "another seed or results.root."
            ) from None
        for leftover in path.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        self._metrics: BinaryIO | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file, which need not exist."""
        return self.path / "checkpoint.pt"

    def summary(self) -> dict[str, Any] | None:
        """What ``run.json`` holds, or ``None`` where there is none that can be read."""
        try:
            content = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        text = json.dumps(finite(summary), indent=2) + "\n"
        write_atomically(self.path / "run.json", lambda file: _write(file, text))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace ``config.yaml``."""
        text = yaml.safe_dump(dict(config), sort_keys=False)
        write_atomically(self.path / "config.yaml", lambda file: _write(file, text))

    def open_metrics(self, length: int) -> None:
        """Open ``metrics.jsonl`` for appending, cut back to what a checkpoint has seen.

        Args:
            length: bytes to keep; 0 for a run that begins.

        Raises:
            ResultsError: the file is shorter than that, or cannot be opened.
        """
        path = self.path / "metrics.jsonl"
        with explained("open", path):
            file = path.open("ab")
        if file.tell() < length:
            file.close()
            raise ResultsError(
                f"{path} is shorter than its checkpoint says: it was edited or lost. Remove the "
                f"folder {self.path} to begin the run anew."
            )
        file.truncate(length)
        self._metrics = file

    def append(self, rows: Iterable[Row]) -> None:
        """Append measurements; they outlive the process at once, not the machine."""
        if self._metrics is None:
            raise RuntimeError("open_metrics comes before append")
        text = "".join(json.dumps(finite(row)) + "\n" for row in rows)
        with explained("append to", self.path / "metrics.jsonl"):
            _write(self._metrics, text)
            self._metrics.flush()

    def metrics_length(self) -> int:
        """Bytes of ``metrics.jsonl``, safely on the disk, for a checkpoint to remember."""
        if self._metrics is None:
            raise RuntimeError("open_metrics comes before metrics_length")
        with explained("write", self.path / "metrics.jsonl"):
            os.fsync(self._metrics.fileno())
        return os.fstat(self._metrics.fileno()).st_size

    def close(self) -> None:
        """Close the files and let go of the folder."""
        if self._metrics is not None:
            self._metrics.close()
        self._lock.close()


def finite(value: Any) -> Any:
    """The same nested value with null where a number is not finite, as JSON wants it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
