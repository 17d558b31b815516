"""Writes a run's measurements and totals to its files and its loggers, on rank 0 alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from tasks.engine.records import checkpoint
from tasks.engine.records.metrics import Measurement
from tasks.engine.records.results import RunFolder


class RowLog(Protocol):
    """Where rows go besides the files."""

    def append(self, rows: Iterable[Measurement]) -> None:
        """Take rows of one step."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the totals; nothing comes after."""


class Writer:
    """Writes a run's files.

    Args:
        folder: the run's folder; ``None`` on every rank but 0, where all is discarded.
        logs: further takers of rows and the summary.
    """

    def __init__(self, folder: RunFolder | None, logs: Iterable[RowLog] = ()) -> None:
        self._folder = folder
        self._logs = list(logs)

    def append(self, rows: Iterable[Measurement]) -> None:
        """Append measurements of one step."""
        if self._folder is None:
            return
        rows = list(rows)
        self._folder.append(rows)
        for log in self._logs:
            log.append(rows)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; it remembers what the metrics were."""
        if self._folder is not None:
            length, digest = self._folder.metrics_mark()
            seen = {"metrics_bytes": length, "metrics_sha256": digest}
            checkpoint.save(self._folder.checkpoint, {**state, **seen})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        if self._folder is not None:
            self._folder.write_summary(summary)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Pass the totals on; nothing comes after."""
        for log in self._logs:
            log.finish(summary)
