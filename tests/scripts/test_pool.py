"""Commands side by side: how many at once, in which order, and how they all end."""

import os
import signal
import sys
import threading
import time

import pytest

from scripts.pool import run_all


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_codes_come_in_the_order_of_the_commands(tmp_path) -> None:
    commands = [python(f"import sys; sys.exit({code})") for code in (3, 0, 5)]
    begun: list[int] = []
    assert run_all(commands, 2, begun.append, cwd=tmp_path) == [3, 0, 5]
    assert begun == [0, 1, 2]


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_at_once(tmp_path, jobs) -> None:
    code = (
        "import os, time; name = str(os.getpid()); open(name, 'w').close(); "
        "time.sleep(0.3); print(len(os.listdir('.')), file=open('../seen', 'a')); os.remove(name)"
    )
    folder = tmp_path / "running"
    folder.mkdir()
    assert run_all([python(code)] * 4, jobs, cwd=folder) == [0] * 4
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert max(seen) == jobs


def test_an_interrupted_command_stops_the_others(tmp_path) -> None:
    waits = "import time, signal, sys\nsignal.signal(2, lambda *a: sys.exit(130))\ntime.sleep(60)"
    codes = run_all([python("exit(130)"), python(waits), python("exit(0)")], 2, cwd=tmp_path)
    assert codes[0] == 130
    assert codes[1] != 0
    assert codes[2] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_that_run_and_starts_no_more(tmp_path, number) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(2, lambda *a: (print('told', file=open('told', 'a')), sys.exit(130)))\n"
        "print('ready', file=open('ready', 'a'), flush=True)\n"
        "time.sleep(60)"
    )

    def tell() -> None:
        while not (tmp_path / "ready").exists() or (tmp_path / "ready").read_text().count("y") < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell).start()
    started = time.monotonic()
    assert run_all([python(code)] * 3, 2, cwd=tmp_path) == [130, 130, None]
    assert time.monotonic() - started < 50
    assert (tmp_path / "told").read_text().count("told") == 2


def test_commands_do_not_hear_the_terminal(tmp_path) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), file=open('own', 'w'))"
    assert run_all([python(code)], cwd=tmp_path) == [0]
    assert (tmp_path / "own").read_text() == "True\n"
