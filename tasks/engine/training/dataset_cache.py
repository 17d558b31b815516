"""Loaded data, kept for further runs of the same process."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from tasks.task import Splits, Task

Loaded = tuple[Task, Splits]


class DatasetCache:
    """Holds what one run has loaded; a run on other data takes its place.

    Runs that a search makes one after the other differ in their optimizer alone, and reading and
    preparing the data can take longer than a short run.
    """

    def __init__(self) -> None:
        self._key = ""
        self._loaded: Loaded | None = None

    def get(self, config: Mapping[str, Any], load: Callable[[], Loaded]) -> Loaded:
        """The task and its data; the tensors are shared, the task is the caller's own.

        Args:
            config: a run's resolved configuration.
            load: reads the data, where they are not what the last run had.
        """
        parts = ("task", "data", "seed", "device", "dtype")
        key = json.dumps({part: config.get(part) for part in parts}, sort_keys=True)
        if self._loaded is None or key != self._key:
            self._key, self._loaded = key, load()
        task, splits = self._loaded
        return copy.copy(task), splits
