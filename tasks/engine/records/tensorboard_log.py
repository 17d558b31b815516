"""The same rows as TensorBoard's events, in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tasks.common.checks import ConfigError
from tasks.engine.records.metrics import Measurement


def require_tensorboard() -> None:
    """Refuse a run that could not be logged, before it begins.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "logger=tensorboard: the package tensorboard is not installed. Install it with "
            "pip install tensorboard, or choose logger=local."
        )


class TensorBoardLog:
    """Writes rows as scalars, ``test/accuracy`` and so on, at their steps.

    An event's time is that of the training clock, so that TensorBoard's axis "relative" leaves out
    evaluation and logging as the report does. A run that resumes takes back what came after its
    checkpoint.

    Args:
        folder: where the events go.
        hyperparameters: the run's configuration.
    """

    def __init__(self, folder: Path, hyperparameters: Mapping[str, Any]) -> None:
        self._folder = folder
        self._about = yaml.safe_dump(dict(hyperparameters), sort_keys=False)
        self._writer: Any = None
        self._began = 0.0

    def append(self, rows: Iterable[Measurement]) -> None:
        """Write rows of one step."""
        for row in rows:
            if self._writer is None:
                self._start(row)
            tag = f"{row['split']}/{row['metric']}"
            when = self._began + row["seconds"]
            self._writer.add_scalar(tag, row["value"], row["step"], walltime=when)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write how the run ended, and close the file."""
        if self._writer is not None:
            self._writer.add_text("outcome", f"{summary['outcome']}: {summary['message']}")
            self._writer.close()

    def _start(self, first: Measurement) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._began = time.time() - first["seconds"]
        self._writer = SummaryWriter(str(self._folder), purge_step=first["step"])
        self._writer.add_text("configuration", f"```\n{self._about}```")
