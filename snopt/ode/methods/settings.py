"""Options, tolerances and counts as people pass them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Set
from typing import Any

from snopt.arguments import number_of

OWN_OPTIONS = ("steps", "max_steps", "warm_start", "compile", "on_failure")
"""Options of a block that are this library's, not its method's."""

_ARGUMENTS = ("field", "t_span", "method", "rtol", "atol", "gradient", "options")


def tolerance(name: str, value: Any) -> float:
    """A tolerance as a number.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative or not finite.
    """
    number = None if isinstance(value, bool) else number_of(value)
    if number is None:
        raise TypeError(
            f"{name}={value!r}; expected one number for the whole state, e.g. {name}=1e-3"
        )
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name}={value!r}; expected a finite number >= 0")
    return number


def count(name: str, value: Any) -> int | None:
    """A number of steps, or ``None``.

    Raises:
        ValueError: it is no whole number >= 1.
    """
    if value is None:
        return None
    number = value if isinstance(value, float) else getattr(value, "__index__", lambda: math.nan)()
    if isinstance(value, bool) or not math.isfinite(number) or number != int(number) or number < 1:
        raise ValueError(f"{name}={value!r}; expected a whole number >= 1, or None")
    return int(number)


def split_options(
    method: str, known: Set[str], options: Any, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A block's options: this library's own, and those that its method takes.

    Args:
        method: its name, for messages.
        known: names of those that the method takes.
        options: all of them.
        arguments: those given beside, which a block does not have.

    Raises:
        TypeError: ``options`` is no mapping, or there are ``arguments``.
        ValueError: the method knows no option of a name, or an own one is outside its choices.
    """
    for name, value in arguments.items():
        _refuse(name, value, name in OWN_OPTIONS or name in known)
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options={options!r}; expected a dict of names, e.g. {{'steps': 8}}")
    own = {key: value for key, value in (options or {}).items() if key in OWN_OPTIONS}
    passed = {key: value for key, value in (options or {}).items() if key not in own}
    unknown = sorted(str(key) for key in passed.keys() - known)
    if unknown:
        raise ValueError(
            f"options: {', '.join(unknown)}: not known to {method!r}; choose from "
            f"{', '.join([*OWN_OPTIONS, *sorted(known)])}"
        )
    _check_values(passed)
    for name in ("warm_start", "compile"):
        if own.get(name) not in (None, True, False):
            raise ValueError(f"options={{{name!r}: {own[name]!r}}}; expected True or False")
        own[name] = bool(own.get(name))
    if own.setdefault("on_failure", "raise") not in ("raise", "partial"):
        raise ValueError(f"on_failure={own['on_failure']!r}; choose raise or partial")
    if own["compile"] and own.get("steps") is None:
        raise ValueError("options={'compile': True} needs a fixed number of steps: add 'steps'")
    return own, passed


def _refuse(name: str, value: Any, option: bool) -> None:
    if option:
        raise TypeError(f"{name} is an option: write options={{{name!r}: {value!r}}}")
    near = difflib.get_close_matches(name, [*_ARGUMENTS, *OWN_OPTIONS], 1)
    raise TypeError(
        f"ODEBlock has no argument {name!r}"
        + (f"; did you mean {near[0]}?" if near else ".")
        + f" Arguments: {', '.join(_ARGUMENTS)}; options={{...}} has {', '.join(OWN_OPTIONS)}"
    )


_LENGTHS = {"step_size": "> 0", "first_step": "> 0", "max_step": "> 0", "min_step": ">= 0"}


def _check_values(passed: Mapping[str, Any]) -> None:
    for name, allowed in _LENGTHS.items():
        given = passed.get(name)
        if given is None:
            continue
        length = None if isinstance(given, bool) else number_of(given)
        if length is None or not (length > 0 or (length == 0 and allowed == ">= 0")):
            raise ValueError(
                f"options={{{name!r}: {given!r}}}; expected a number {allowed}, the length of a "
                "step, whichever way time runs"
            )
    grid = passed.get("grid_constructor")
    if grid is not None and not callable(grid):
        raise ValueError(
            f"options={{'grid_constructor': {grid!r}}}; expected a function (field, x, t) that "
            "returns the times of the steps, from t[0] to t[-1]"
        )
    if grid is not None and passed.get("step_size") is not None:
        raise ValueError("options: step_size and grid_constructor: both choose the steps; give one")
    if passed.get("interp", "linear") not in ("linear", "cubic"):
        raise ValueError(f"options={{'interp': {passed['interp']!r}}}; choose linear or cubic")
