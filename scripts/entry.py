"""How the scripts read what they are given, and report errors: a sentence and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.common.checks import ConfigError
from tasks.data.errors import DataError
from tasks.engine.cli import FAILED, REFUSED
from tasks.engine.records.results import ResultsError
from tasks.engine.training.signals import INTERRUPTED

#: What a user can fix: a mistake, missing data, a file that cannot be written.
MISTAKES = (
    ConfigError,
    DataError,
    ResultsError,
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    OSError,
)


def status(main: Callable[[], int]) -> int:
    """Run a script's ``main``; its exit status, or that of what went wrong, which is said."""
    try:
        return main()
    except MISTAKES as error:
        message, code = str(error), REFUSED
    except KeyboardInterrupt:
        message, code = "stopped.", INTERRUPTED
    except MemoryError as error:
        message, code = f"out of memory: {error}", FAILED
    sys.stderr.write(f"{message}\n")
    return code


def at_least(low: int) -> Callable[[str], int]:
    """For argparse: a whole number, at least ``low``."""

    def read(typed: str) -> int:
        try:
            value = int(typed)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{typed}: must be a whole number, at least {low}")
        return value

    return read


def require_ranges_of_files(given: Iterable[str]) -> None:
    """Refuse ranges on the command line, which nobody would read.

    Args:
        given: dotted keys.

    Raises:
        ConfigError: a range is among them.
    """
    if any(f"{key}.".startswith("optim.about.search.") for key in given):
        raise ConfigError("optim.about.search is read from conf/optim/<name>.yaml: set it there.")
