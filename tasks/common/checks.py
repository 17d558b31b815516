"""Checks of values read from YAML or typed on the command line, and the words for what is wrong."""

from __future__ import annotations

import collections.abc
import difflib
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self


class ConfigError(ValueError):
    """A setting that cannot be; the message names it, its value and what may stand there."""


def choices(name: str, value: object, valid: Iterable[str]) -> str:
    """A sentence that lists the valid choices and the one that was probably meant."""
    options = sorted(valid)
    close = difflib.get_close_matches(str(value), options, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{name}={value}: no such choice.{meant} Choices: {', '.join(options)}."


def require_choice(name: str, value: object, valid: Collection[str]) -> None:
    """Raise a :class:`ConfigError` unless ``value`` is one of ``valid``."""
    if value not in valid:
        raise ConfigError(choices(name, value, valid))


def require_keys(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise a :class:`ConfigError` for the first key of ``given`` that is not in ``valid``.

    Args:
        where: the section they belong to; empty for the configuration itself.
        given: the keys to check.
        valid: the keys that there are.
    """
    options = sorted(valid)
    for key in given:
        if key not in options:
            close = difflib.get_close_matches(str(key), options, n=1)
            prefix = f"{where}." if where else ""
            meant = f" Did you mean {prefix}{close[0]}?" if close else ""
            keys = f"Keys of {where}" if where else "Keys"
            raise ConfigError(
                f"{prefix}{key}: no such key.{meant} {keys}: {', '.join(options) or 'none'}."
            )


def require_type(name: str, value: object, annotation: Any) -> None:
    """Raise a :class:`ConfigError` unless ``value`` has the annotated type."""
    if not fits(value, annotation):
        finite = not isinstance(value, float) or math.isfinite(value)
        raise ConfigError(
            f"{name}={value!r}: {'expected' if finite else 'must be finite; expected'} "
            f"{_words(annotation)}."
        )


def fits(value: object, annotation: Any) -> bool:
    """Whether a value read from YAML has the annotated type.

    An int passes for a float, a list for a tuple; a float must be finite. What YAML cannot hold,
    and what cannot be looked into, passes only where the annotation has no better choice.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(parts)
            and all(fits(item, part) for item, part in zip(value, parts, strict=True))
        )
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return isinstance(value, list | tuple) and all(fits(item, parts[0]) for item in value)
    if origin is collections.abc.Callable:  # whoever is given it knows best
        return True
    if origin is not None:
        return isinstance(value, origin)
    if annotation is Any:
        return True
    if annotation is None:
        return value is None
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


#: Types of plain values that can be typed.
_TYPED = (bool, int, float, str, type(None))


def _words(annotation: Any) -> str:
    """An annotation as it is typed in YAML: without modules, null for None."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        typed = [p for p in typing.get_args(annotation) if not isinstance(p, type) or p in _TYPED]
        parts = [part for part in typed if part is not type(None)]
        null = ["null"] if type(None) in typing.get_args(annotation) else []
        return " | ".join([*(_words(part) for part in parts), *null])
    if typing.get_origin(annotation) is not None:
        if typing.get_origin(annotation) is tuple:
            items = typing.get_args(annotation)
            inner = ["..." if item is Ellipsis else _words(item) for item in items]
            return f"tuple[{', '.join(inner)}]"
        return str(annotation).replace("typing.", "").replace("collections.abc.", "")
    if annotation is float:
        return "float"
    return str(getattr(annotation, "__name__", annotation))


@dataclass(frozen=True)
class Section:
    """A part of the configuration: known keys, enforced types."""

    @classmethod
    def read(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Read the section from its mapping.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
        """
        require_keys(where, values, [field.name for field in fields(cls)])
        for field in fields(cls):
            if field.name not in values and field.default is MISSING:
                raise ConfigError(f"{where}.{field.name}: is missing. It was removed (~).")
        hints = typing.get_type_hints(cls)
        for key, value in values.items():
            require_type(f"{where}.{key}", value, hints[key])
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from None

    def _at_least(self, low: float, *names: str, strictly: bool = False) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and (value <= low if strictly else value < low):
                bound = f"greater than {low:g}" if strictly else f"at least {low:g}"
                raise ValueError(f"{name}={value}: must be {bound}.")
