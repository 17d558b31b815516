"""Settings by their names of today, where somebody or an earlier file has an earlier one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

#: Names of earlier versions.
NOW = {"plain": "fallback"}


def renamed(settings: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """The same settings under today's names.

    Args:
        settings: by name, of an optimizer or of a parameter group.
        warn: whether earlier names are somebody's to change, and no old file's.
    """
    for name in NOW.keys() & settings.keys() if warn else ():
        warnings.warn(
            f"{name}= is called {NOW[name]}= now: write {NOW[name]}={settings[name]!r}.",
            DeprecationWarning,
            stacklevel=4,
        )
    return {NOW.get(name, name): value for name, value in settings.items()}
