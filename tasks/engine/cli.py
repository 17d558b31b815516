"""The command line: what it asks for is done, and ends with a code, without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.common.checks import ConfigError
from tasks.engine.config.composing import CONF, checked, plain
from tasks.engine.config.schedule import without_idle
from tasks.engine.config.settings import Settings
from tasks.engine.training.signals import INTERRUPTED, end_by_exception

logger = logging.getLogger(__name__)

#: Exit codes beside 0, for what ended as it was asked to, and 130, for what was interrupted.
FAILED, REFUSED, DIVERGED = 1, 2, 3
CODES = (0, FAILED, REFUSED, DIVERGED, INTERRUPTED)


def run(arguments: Sequence[str]) -> NoReturn:
    """Do what the command line asks for, and end the process with one of :data:`CODES`.

    Args:
        arguments: what stands after ``run.py``.
    """
    try:
        sys.argv[1:] = checked(arguments)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra leaves exceptions to us
        task()
    except JobError as error:
        end(error.code, "\n".join(["Of this sweep did not end well:", *(_ended or [str(error)])]))
    except (ConfigError, HydraException, OmegaConfBaseException, YAMLError) as error:
        end(REFUSED, f"{error}\nHelp: python run.py --help")
    except KeyboardInterrupt:
        end(INTERRUPTED, "stopped; the same command begins again, or resumes.")
    except OSError as error:  # of Hydra's own files
        end(REFUSED, f"{error.filename}: {error.strerror}. Choose another results.root.")
    sys.exit(0)


def end(code: int, message: str) -> NoReturn:
    """End the process with a message and a code."""
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(config: DictConfig) -> None:
    """What Hydra runs, once for every job: train what the composed configuration asks for."""
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    code, message = main(config, sweeping)
    if not code:
        return
    if code == INTERRUPTED or not sweeping:
        end(code, message)
    logger.error("%s", message)
    _ended.append(message)
    raise JobError(message, code)  # Hydra passes on the first, once all jobs have run


#: Messages of the jobs of a sweep that failed in this process.
_ended: list[str] = []


class JobError(CompactHydraException):
    """A job of a sweep that did not end as it was asked to."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


def main(config: DictConfig, sweeping: bool = False) -> tuple[int, str]:
    """Train what a composed configuration asks for.

    Args:
        config: as Hydra composed it.
        sweeping: whether it is one job of several.

    Returns:
        One of :data:`CODES`, and what to say.
    """
    import torch

    from tasks.data.errors import DataError
    from tasks.engine.experiment import train
    from tasks.engine.records.record import Outcome
    from tasks.engine.records.results import ResultsError

    end_by_exception()
    try:
        values = plain(config)
        if sweeping:
            values, idle = without_idle(values)
            for why in idle.values():
                logger.warning("schedule.%s: left out of this job", why)
        settings = Settings.read(values)
        if sweeping and values["logger"].get("progress") == "auto":
            values["logger"]["progress"] = "plain"  # several bars would draw over each other
        summary = train(settings)
    except (ConfigError, DataError, ResultsError) as error:
        return REFUSED, str(error)
    except KeyboardInterrupt:
        return INTERRUPTED, "stopped at once; the same command begins again, or resumes."
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        return FAILED, (
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more to be had'}. "
            "Choose a smaller task.batch_size or net, or solver.gradient=adjoint."
        )
    title = f"{'/'.join(settings.names)} seed {settings.seed}"
    if summary["outcome"] == Outcome.INTERRUPTED:
        return INTERRUPTED, f"{title}: interrupted."
    if summary["outcome"] == Outcome.DIVERGED:
        return DIVERGED, f"{title}: diverged. {summary['message']}"
    return 0, ""


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed; on the CPU torch has no class of its own for that."""
    import torch

    words = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)
