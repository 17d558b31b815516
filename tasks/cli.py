"""The command line's manners: mistakes are explained before anything runs, without a traceback."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.settings import ConfigError, Settings, choices

logger = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parent.parent / "conf"

#: Sweeps are checked job by job, up to so many.
MOST_JOBS = 256


def check_arguments(arguments: Sequence[str]) -> None:
    """Compose every job that the arguments ask for, and end the process on the first mistake.

    Args:
        arguments: what stands after ``run.py``. With other flags than ``-m`` Hydra has the word.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    if any(flag not in ("-m", "--multirun") for flag in flags):
        return
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    try:
        check_overrides(overrides, sweep=bool(flags))
    except ConfigError as error:
        sys.exit(f"{error}\nHelp: python run.py --help")


def check_overrides(overrides: Sequence[str], sweep: bool = False) -> None:
    """Compose and validate what overrides ask for, without importing torch.

    Args:
        overrides: in Hydra's grammar.
        sweep: whether commas mean several jobs.

    Raises:
        ConfigError: something is unknown or cannot be; the message lists what can.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: not an override. Write key=value.") from error
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        if not any(override.key_or_group == "hydra.searchpath" for override in parsed):
            for override in parsed:
                _check_choice(override)
        jobs = _jobs(parsed) if sweep else iter([list(overrides)])
        for job in itertools.islice(jobs, MOST_JOBS):
            try:
                config = compose("config", overrides=job)
            except (HydraException, OmegaConfBaseException) as error:
                _check_keys(OverridesParser.create().parse_overrides(job))
                raise ConfigError(str(error)) from error
            Settings.read(plain(config))


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain mappings and lists.

    Raises:
        ConfigError: an interpolation cannot be resolved, or a mandatory value is missing.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {error}") from error
    return {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]


def _jobs(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; seeds do not make a difference here."""
    alternatives: list[list[str]] = []
    for override in parsed:
        key = override.get_key_element()
        if override.is_hydra_override() and key != "hydra.searchpath":
            continue
        if override.is_sweep_override() and override.is_discrete_sweep():
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            alternatives.append(values[:1] if key == "seed" else values)
        elif not override.is_sweep_override():
            alternatives.append([str(override.input_line)])
    for job in itertools.product(*alternatives):
        yield list(job)


def _options(group: str) -> list[str]:
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def _check_choice(override: Override) -> None:
    """Raise unless every value given for a group is one of its choices."""
    options = _options(override.key_or_group)
    if not options or override.type is OverrideType.DEL or override.is_hydra_override():
        return
    discrete = override.is_sweep_override() and override.is_discrete_sweep()
    values = override.sweep_string_iterator() if discrete else [override.value()]
    for value in values:
        if isinstance(value, str) and value not in options:
            # A choice may lie in a folder: experiment=paper/images/mnist-adam.
            folder, _, name = value.rpartition("/")
            inside = _options(f"{override.key_or_group}/{folder}") if folder else []
            if name not in inside:
                valid = [f"{folder}/{option}" for option in inside] or options
                raise ConfigError(choices(override.key_or_group, value, valid))


def _check_keys(parsed: Sequence[Override]) -> None:
    """Raise for the first override whose key is not in the configuration."""
    groups = [override for override in parsed if _options(override.key_or_group)]
    try:
        config = compose("config", overrides=[str(group.input_line) for group in groups])
    except HydraException as error:
        raise ConfigError(str(error)) from error
    for override in parsed:
        if override in groups or override.type is not OverrideType.CHANGE:
            continue
        node: Any = config
        parents: list[str] = []
        for part in override.key_or_group.split("."):
            keys = [str(key) for key in node] if isinstance(node, DictConfig) else []
            if part not in keys:
                where = ".".join(parents)
                asked = ".".join([*parents, part])
                missing = choices(where or "configuration", part, keys).split(":", 1)[1]
                raise ConfigError(
                    f"{asked}: no such key.{missing.removeprefix(' no such choice.')}".replace(
                        "Choices:", f"Keys of {where}:" if where else "Keys:"
                    )
                )
            node = node[part]
            parents.append(part)


def main(config: DictConfig) -> None:
    """Train what a composed configuration asks for; the body of ``run.py``.

    Mistakes and missing data end with a message and exit code 1, an interrupted run with 130.
    """
    from tasks.data.errors import DataError
    from tasks.experiment import train
    from tasks.results import Outcome, ResultsError

    values = plain(config)
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    if sweeping and values["logger"].get("progress") == "auto":
        values["logger"]["progress"] = "plain"  # several bars would draw over each other
    try:
        summary = train(Settings.read(values))
    except (ConfigError, DataError, ResultsError) as error:
        if sweeping:  # Hydra prints it without a traceback, and goes on with the other jobs
            raise CompactHydraException(str(error)) from None
        sys.exit(str(error))
    if summary["outcome"] == Outcome.INTERRUPTED:
        sys.exit(130)
