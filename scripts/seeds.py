"""Seeds: how they are typed on the command line, and which ones choices may depend on."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common.checks import ConfigError

#: Seeds of results, which no choice may depend on, and those that choices are made on.
REPORTED_SEEDS, TUNING_SEEDS = range(10), (100, 101)


def read_seeds(typed: str) -> list[int]:
    """The seeds that ``--seeds`` names.

    Args:
        typed: whole numbers separated by commas, as ``0,1,2``.

    Raises:
        ConfigError: it is something else, or a seed is given twice and would count twice.
    """
    words = typed.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--seeds={typed}: give whole numbers separated by commas, as 0,1,2.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds={typed}: a seed is given twice; one run would count as two.")
    return seeds


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that results are reported for.

    Raises:
        ConfigError: one of :data:`REPORTED_SEEDS`.
    """
    reserved = [seed for seed in seeds if seed in REPORTED_SEEDS]
    if reserved:
        raise ConfigError(f"--seeds: {reserved[0]} is for results; tune on others, such as 100.")
