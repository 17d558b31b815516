"""Numbers and choices as people pass them, checked everywhere alike."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def choose(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ``ValueError`` that lists the choices unless ``value`` is one of them."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={value!r}; choose one of {', '.join(known)}")


def whole_number(name: str, value: Any, low: int) -> None:
    """Raise a ``ValueError`` unless ``value`` is a whole number, at least ``low``."""
    # Numbers of numpy and tensors of one element compare as numbers do.
    if isinstance(value, bool) or number_of(value) is None or not (value >= low and value % 1 == 0):
        raise ValueError(f"{name}={value!r}; expected a whole number >= {low}")


def number_of(value: Any) -> float | None:
    """A real number of Python, numpy or torch (one element) as a float, else ``None``."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, numbers.Real) else None


def instance_of(kind: type, value: Any) -> None:
    """Refuse what is none of a kind of module.

    Raises:
        TypeError: the message says how one inside another module is passed.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"expected an {kind.__name__}, got {type(value).__name__}: pass the one that the model "
            "has, e.g. model.block"
        )
