"""Composes configurations of what was typed; mistakes are explained before anything runs."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.common.checks import ConfigError, choices
from tasks.engine.config.schedule import without_idle
from tasks.engine.config.settings import NEEDED, Settings

CONF = Path(__file__).resolve().parents[3] / "conf"

#: Sweeps are checked job by job, up to so many, and no key has more values than that.
MOST_JOBS, MOST_VALUES = 256, 100_000

#: Signs that mean something inside a value.
_STRUCTURE = "()[]{},'\"$"
#: Where Hydra would write, or go.
_FOLDERS = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")


def checked(arguments: Sequence[str]) -> list[str]:
    """Compose every job that the arguments ask for.

    Args:
        arguments: what stands after ``run.py``. Any flag but ``-m`` is left to Hydra.

    Returns:
        The arguments as Hydra reads them.

    Raises:
        ConfigError: the first mistake.
    """
    arguments = _searched(arguments)
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if all(flag in ("-m", "--multirun") for flag in flags):
        return [*flags, *check_overrides(overrides, sweep=bool(flags))]
    arguments = opened(arguments)
    if not any(flag.startswith(("--config", "-c")) and flag != "-c" for flag in flags):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            _parsed([text for text in overrides if _parses(text)], sweep=True)
    return list(arguments)


def _searched(arguments: Sequence[str]) -> list[str]:
    """With the override that ``--config-dir`` stands for, which is checked as all others are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    known, others = parser.parse_known_args(arguments)
    if known.config_dir is None:
        return list(arguments)
    if not known.config_dir.is_dir():
        raise ConfigError(f"--config-dir={known.config_dir}: no such folder.")
    return [*others, f"hydra.searchpath=['file://{known.config_dir.resolve().as_posix()}']"]


def check_overrides(overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """Compose and validate what overrides ask for, without importing torch.

    Args:
        overrides: in Hydra's grammar, but for values with letters or signs that it does not know.
        sweep: whether commas mean several jobs.

    Returns:
        The overrides in Hydra's grammar.

    Raises:
        ConfigError: something is unknown or cannot be; the message lists what can.
    """
    readable = opened([_readable(override) for override in overrides])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        parsed = _parsed(readable, sweep)
        jobs = _jobs(parsed) if sweep else iter([readable])
        unused: list[dict[str, str]] = []
        for job in itertools.islice(jobs, MOST_JOBS):
            try:
                config = compose("config", overrides=job)
            except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
                _check_keys(OverridesParser.create().parse_overrides(job))
                raise ConfigError(_reason(error)) from error
            values = plain(config)
            if sweep:  # a setting that all jobs share may be of some of their schedules alone
                values, idle = without_idle(values)
                unused.append(idle)
            Settings.read(values)
        everywhere = set.intersection(*map(set, unused)) if unused else set()
        if everywhere and next(jobs, None) is None:
            raise ConfigError(f"schedule.{unused[0][min(everywhere)]}.")
    return readable


def _reason(error: Exception) -> str:
    """What went wrong in a file; some exceptions leave it to the one that they come from."""
    return str(error) or f"configuration: {error.__cause__}"


def opened(overrides: Sequence[str]) -> list[str]:
    """With ``optim=custom`` any key of ``optim`` may be given; the class says which there are."""
    if "optim=custom" not in overrides:
        return list(overrides)
    return [f"++{text}" if text.startswith("optim.") else text for text in overrides]


def _parsed(overrides: Sequence[str], sweep: bool) -> list[Override]:
    """Overrides in whose form and choices there is no mistake."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    for override in parsed:
        _check_form(override, sweep, _searchpath(parsed))
    for override in parsed:
        _check_choice(override, _searchpath(parsed))
    return parsed


def quoted(key: str, value: object) -> str:
    """An override that gives a key this very text, whatever letters and signs it has."""
    # Of backslashes only those before a quote count twice.
    text = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), str(value))
    return f"{key}='{text}'"


def override(key: str, value: object) -> str:
    """As :func:`quoted`, with quotes only where the text would be read as something else."""
    plain = f"{key}={value}"
    same = _parses(plain) and OverridesParser.create().parse_override(plain).value() == str(value)
    return plain if same else quoted(key, value)


def _readable(typed: str) -> str:
    """An override in Hydra's grammar, its value in quotes where it has other letters or signs.

    Raises:
        ConfigError: no override at all, or one whose quotes the user must set.
    """
    key, _, value = typed.partition("=")
    if not key:
        raise ConfigError(f"{typed!r}: not an override. Write key=value.")
    if _parses(typed):
        return typed
    text = quoted(key, value)
    if not value or not _parses(text):
        raise ConfigError(f"{typed}: not an override. Write key=value.")
    if set(value) & set(_STRUCTURE):
        raise ConfigError(f'{typed}: not an override. Write key=value; as plain text "{text}".')
    return text


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _check_form(override: Override, sweep: bool, searchpath: Sequence[str]) -> None:
    """Raise for several values of a single run, values without number, and Hydra's own folders."""
    key, typed = override.key_or_group, override.input_line
    if any(key == own or key.startswith(f"{own}.") for own in _FOLDERS):
        raise ConfigError(f"{key}: runs write below results.root alone. Set results.root=...")
    if override.type is OverrideType.DEL and key in NEEDED:
        raise ConfigError(f"~{key}: no run can do without {key}. Set it instead, {key}=...")
    if not override.is_sweep_override():
        return
    if not sweep:
        text = quoted(key, str(typed).partition("=")[2])
        raise ConfigError(
            f"{typed}: several values. Add -m for a run of each; a list is written {key}=[...], "
            f'text with such signs in quotes, "{text}".'
        )
    if override.is_discrete_sweep():
        if next(_values(override), None) is None:
            options = ", ".join(_options(key, searchpath))
            valid = f" Choices of {key}: {options}." if options else ""
            raise ConfigError(f"{typed}: stands for no value.{valid}")
    elif override.value_type is ValueType.INTERVAL_SWEEP:
        raise ConfigError(
            f"{typed}: an interval has no end of values. Write some, {key}=a,b,c, or a "
            f"range(start,stop,step)."
        )


def _values(override: Override) -> Iterator[str]:
    """The values of a discrete sweep, as typed.

    Raises:
        ConfigError: they cannot be listed.
    """
    try:
        yield from itertools.islice(override.sweep_string_iterator(), MOST_VALUES)
    except (HydraException, ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{override.input_line}: {error}") from error


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


def _searchpath(parsed: Sequence[Override]) -> list[str]:
    """The overrides that name further folders of groups."""
    return [str(o.input_line) for o in parsed if o.key_or_group == "hydra.searchpath"]


def _options(group: str, searchpath: Sequence[str]) -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group, overrides=list(searchpath)))


def _check_choice(override: Override, searchpath: Sequence[str]) -> None:
    """Raise unless every value given for a group is one of its choices."""
    options = _options(override.key_or_group, searchpath)
    if not options or override.type is OverrideType.DEL or override.is_hydra_override():
        return
    for value in _values(override) if override.is_sweep_override() else [override.value()]:
        if not isinstance(value, str):
            typed = str(override.input_line).partition("=")[2]
            raise ConfigError(choices(override.key_or_group, typed, options))
        if value not in options:
            # A choice may lie in a folder: experiment=paper/images/mnist-adam.
            folder, _, name = value.rpartition("/")
            inside = _options(f"{override.key_or_group}/{folder}", searchpath) if folder else []
            if name not in inside:
                # Or it is a folder itself.
                below = _options(f"{override.key_or_group}/{value}", searchpath) if value else []
                valid = (
                    [f"{value}/{option}" for option in below]
                    or [f"{folder}/{option}" for option in inside]
                    or options
                )
                raise ConfigError(choices(override.key_or_group, value, valid))


def _check_keys(parsed: Sequence[Override]) -> None:
    """Raise for the first override whose key is not in the configuration."""
    searchpath = _searchpath(parsed)
    groups = [
        o for o in parsed if o.input_line in searchpath or _options(o.key_or_group, searchpath)
    ]
    try:
        config = compose("config", overrides=[str(group.input_line) for group in groups])
    except (HydraException, UnicodeDecodeError) as error:
        raise ConfigError(_reason(error)) from error
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
