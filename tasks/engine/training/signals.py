"""Ctrl-C and SIGTERM: a wish to stop between two steps of training, an end at once before it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)


_STOP = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    _STOP.append(signal.SIGBREAK)  # sent by scripts that interrupt what they started

#: Exit code of a command that was interrupted.
INTERRUPTED = 130


def end_at_once() -> None:
    """From here on Ctrl-C ends the process with a sentence, for the time of imports and checks.

    Modules that are half imported turn an exception into errors of their own.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"stopped before training began.\n")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)


def end_by_exception() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt again, so that files are closed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopSignals:
    """Catches SIGINT and SIGTERM inside a ``with`` block; the second Ctrl-C stops at once.

    Outside of the main thread, where Python allows no handlers, nothing is caught.

    Attributes:
        received: name of the signal that came, or ``None``.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOP:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        logger.info("%s: stopping after this step", self.received)
