"""Commands side by side: a few at a time, all of them ended when this process is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.engine.config.composing import CONF
from tasks.engine.training.signals import INTERRUPTED

_POLL = 0.05  # seconds
if sys.platform == "win32":
    _APART: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    _INTERRUPT = signal.CTRL_BREAK_EVENT  # the one that reaches a group alone
else:
    _APART = {"start_new_session": True}
    _INTERRUPT = signal.SIGINT


def run_all(
    commands: Sequence[Sequence[str]],
    jobs: int = 1,
    begin: Callable[[int], None] = lambda index: None,
    *,
    deadline: float | None = None,
    cwd: Path = CONF.parent,
) -> list[int | None]:
    """Run every command, at most ``jobs`` at a time, in order.

    Ctrl-C or SIGTERM interrupts those that run, once, and starts no more; so does a command that
    was interrupted itself. A second signal kills them.

    Args:
        commands: programs with their arguments.
        jobs: how many run at once, at least 1.
        begin: called with a command's index before it starts.
        deadline: of ``time.monotonic``, after which all is as if somebody had interrupted it.
        cwd: where they run.

    Returns:
        Exit codes, ``None`` for commands that were not started.
    """
    codes: list[int | None] = [None] * len(commands)
    running: dict[int, subprocess.Popen[bytes]] = {}
    following = list(enumerate(commands))
    stopped = False
    with _signals() as received:
        try:
            while running or (following and not stopped):
                late = deadline is not None and time.monotonic() > deadline
                if (received or late) and not stopped:
                    stopped = True
                    _interrupt(running)
                if len(received) > 1:  # the second one kills
                    for process in running.values():
                        process.kill()
                while following and not stopped and not received and len(running) < jobs:
                    index, command = following.pop(0)
                    begin(index)
                    # Apart from the terminal: an interruption reaches it from here alone, once.
                    running[index] = subprocess.Popen(command, cwd=cwd, **_APART)
                ended = _collect(running, codes)
                if any(codes[index] == INTERRUPTED for index in ended) and not stopped:
                    stopped = True
                    _interrupt(running)
                time.sleep(0 if ended else _POLL)
            return codes
        finally:
            for process in running.values():  # only where something else went wrong
                process.kill()


def _collect(running: dict[int, subprocess.Popen[bytes]], codes: list[int | None]) -> list[int]:
    ended = [index for index, process in running.items() if process.poll() is not None]
    for index in ended:
        codes[index] = running.pop(index).returncode
    return ended


def _interrupt(running: dict[int, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.send_signal(_INTERRUPT)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM inside are recorded, so that none falls between a start and its record."""
    received: list[int] = []

    def record(number: int, frame: Any) -> None:
        received.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, record)
    except ValueError:  # not in the main thread, which alone gets signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
