"""``run.py`` in this process: what it prints, what it returns, and a sweep's leftovers put away."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from dataclasses import dataclass

from hydra.core.global_hydra import GlobalHydra

from tasks.engine import cli

#: A run of one small step on data that need no download.
ONE_STEP = (
    "task=digits",
    "task.hidden=4",
    "task.batch_size=8",
    "train.max_steps=1",
    "train.eval_at_start=false",
    "train.eval_train_samples=8",
    "train.eval_valid_samples=8",
    "train.eval_test_samples=8",
    "logger.progress=off",
)


@dataclass(frozen=True)
class Answer:
    """What a command left on the console, and its exit code."""

    code: int
    text: str


def run(*arguments: str) -> Answer:
    """Run ``run.py`` with arguments; flags go first, as argparse wants them."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    given = [*flags, *(argument for argument in arguments if not argument.startswith("-"))]
    text = io.StringIO()
    before = sys.argv, signal.getsignal(signal.SIGINT), os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = ["run.py", *given]
    cli._ended.clear()
    try:
        with (
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")
            cli.run(given)
    except SystemExit as end:
        return Answer(int(end.code or 0), text.getvalue())
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before[2] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[2]
        root.handlers[:], root.level = handlers, level
        GlobalHydra.instance().clear()
    raise AssertionError("cli.run returned")
