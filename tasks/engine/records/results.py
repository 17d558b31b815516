"""The files of a run: what is written, where, and how a killed run is resumed.

``config.yaml`` holds the resolved configuration, ``metrics.jsonl`` one row a measurement,
``run.json`` identity, outcome and totals, ``checkpoint.pt`` everything to resume. Files are
replaced whole; only the metrics grow, and a resumed run cuts them back to its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from tasks.common.files import atomic_write, sha256
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.records.metrics import Measurement, as_lines, finite
from tasks.engine.records.record import FILES, FINISHED, RecordError, read_record, sealed

logger = logging.getLogger(__name__)


class ResultsError(RuntimeError):
    """A file of a run cannot be written or read; the message says which and what to do."""


@contextmanager
def wrap_os_error(action: str, path: Path) -> Iterator[None]:
    """Turn an operating system's error into a :class:`ResultsError` that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(
            f"could not {action} {path}: {reason}. What was saved there before is intact; free "
            "space or rights, or choose another results.root, and run the same command again."
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file of the results, whole or not at all.

    Raises:
        ResultsError: the disk is full, or the folder cannot be written to.
    """
    with wrap_os_error("write", path), atomic_write(path) as file:
        file.write(content)


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
        self._lock = FileLock(path / ".lock", timeout=0)
        with wrap_os_error("create", path):
            path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise ResultsError(
                    f"another process is training this run: {path} is locked. Wait for it, or "
                    "choose another seed or results.root."
                ) from None
        for leftover in path.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        self._metrics: BinaryIO | None = None
        self._seen = hashlib.sha256()  # of all that the metrics hold
        self._config = ""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file, which need not exist."""
        return self.path / "checkpoint.pt"

    def summary(self) -> dict[str, Any] | None:
        """What ``run.json`` holds, or ``None`` where there is none.

        Raises:
            ResultsError: it is damaged.
        """
        try:
            return read_record(self.path / "run.json")
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise ResultsError(
                f"{self.path}: {error}. Restore it from a copy, remove run.json to go on from the "
                "checkpoint, or remove the folder to start the run from scratch."
            ) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``run.json``; that of a finished run has the digests of the files beside it."""
        files = {"config.yaml": self._config}
        if summary.get("outcome") in FINISHED:
            files["metrics.jsonl"] = self._seen.hexdigest()
        record = json.loads(json.dumps(finite({**summary, FILES: files})))
        text = json.dumps(sealed(record), indent=2) + "\n"
        write_file(self.path / "run.json", text.encode())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace ``config.yaml``."""
        content = yaml.safe_dump(dict(config), sort_keys=False).encode()
        self._config = sha256(content)
        write_file(self.path / "config.yaml", content)

    def open_metrics(self, length: int, digest: str | None = None) -> None:
        """Open ``metrics.jsonl`` for appending, cut back to what a checkpoint has seen.

        Args:
            length: bytes to keep; 0 for a run that begins.
            digest: of these bytes; ``None`` where the checkpoint was made before it had one: then
                each line must be a row, no two alike.

        Raises:
            ResultsError: the file is not as the checkpoint has seen it, or cannot be opened.
        """
        path = self.path / "metrics.jsonl"
        with wrap_os_error("open", path):
            file = path.open("ab")
        try:
            with wrap_os_error("read", path):
                kept = path.read_bytes()[:length]
            problem = _damage(kept, length, digest)
            if problem is not None:
                raise ResultsError(
                    f"{path} {problem}: it was edited or damaged. Restore it from a copy, or "
                    f"remove the folder {self.path} to start the run from scratch."
                )
            if not length and path.stat().st_size:
                logger.warning("%s: begins anew, as checkpoint.pt is missing", self.path)
            file.truncate(length)
        except BaseException:
            file.close()
            raise
        self._metrics, self._seen = file, hashlib.sha256(kept)

    def append(self, measurements: Iterable[Measurement]) -> None:
        """Append measurements; they outlive the process at once, not the machine."""
        if self._metrics is None:
            raise RuntimeError("open_metrics comes before append")
        lines = as_lines(measurements).encode()
        with wrap_os_error("append to", self.path / "metrics.jsonl"):
            self._metrics.write(lines)
            self._metrics.flush()
        self._seen.update(lines)

    def metrics_mark(self) -> tuple[int, str]:
        """Bytes of ``metrics.jsonl``, safely on the disk, and their digest, for a checkpoint."""
        if self._metrics is None:
            raise RuntimeError("open_metrics comes before metrics_mark")
        with wrap_os_error("write", self.path / "metrics.jsonl"):
            os.fsync(self._metrics.fileno())
        return os.fstat(self._metrics.fileno()).st_size, self._seen.hexdigest()

    def close(self) -> None:
        """Close the files and let go of the folder."""
        if self._metrics is not None:
            self._metrics.close()
        self._lock.release()


def _damage(kept: bytes, length: int, digest: str | None) -> str | None:
    """What is wrong with the metrics that a checkpoint has seen, or ``None``."""
    if len(kept) < length:
        return "is shorter than its checkpoint says"
    if digest is not None:
        return None if sha256(kept) == digest else "is not what its checkpoint has seen"
    seen = set()
    for line in kept.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            key = (row["step"], row["split"], row["metric"])
            whole = row.keys() == Measurement.__annotations__.keys() and key not in seen
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            return f"has a line that is no row, or one twice ({line[:60]!r})"
        seen.add(key)
    return None if kept[-1:] in (b"", b"\n") else "ends in the middle of a row"
