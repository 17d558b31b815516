"""Seeds as they are typed on the command line."""

from __future__ import annotations

from tasks.common.checks import ConfigError


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
