"""Settings of rules and groups: what each may be, said once, beside its default."""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from snopt.arguments import choose, number_of, whole_number
from snopt.optim.damping import LevenbergMarquardt, damping_at

ROUNDING = 1e-12
"""How far below its range a number in a group may be."""


class Kind(ABC):
    """What a setting may be."""

    @abstractmethod
    def check(self, name: str, value: Any) -> None:
        """Raise a ``ValueError`` that names the setting, the value and the range."""

    def now(self, name: str, value: Any, step: int) -> Any:
        """The value in one step, as plain Python numbers.

        Raises:
            ValueError: what was written into a group since is none.
        """
        return value


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A real number.

    Attributes:
        words: the range in words.
        least: the lowest number.
        largest: the largest one.
        below: a largest one that is not in the range.
        optional: whether ``None`` stands for none.
        follows_steps: whether it may be a function of the step.
        steered: whether that may be a controller, which compares losses.
    """

    words: str = "a number >= 0"
    least: float = 0.0
    largest: float = sys.float_info.max
    below: float | None = None
    optional: bool = False
    follows_steps: bool = False
    steered: bool = False

    @override
    def check(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        if callable(value) and self.follows_steps:
            if isinstance(value, LevenbergMarquardt) and not self.steered:
                raise ValueError(
                    f"{name}: this rule's damping has no controller; pass a number or a function "
                    "of the step"
                )
            return
        found = None if isinstance(value, bool) else number_of(value)
        if found is None or not self.least <= found <= self.largest or found == self.below:
            raise ValueError(f"{name}={value!r}; expected {self.words}")

    @override
    def now(self, name: str, value: Any, step: int) -> float | None:
        if self.follows_steps:
            value = damping_at(value, step)
        if value is None and self.optional:
            return None
        plain = type(value) is float  # as nearly always
        found = value if plain else None if isinstance(value, bool) else number_of(value)
        # A schedule that ends in zero may end a rounding below.
        low = self.least - ROUNDING
        if found is None or not low <= found <= self.largest or found == self.below:
            raise ValueError(f"a group's {name} is {value!r}; expected {self.words}")
        return float(found)


@dataclasses.dataclass(frozen=True)
class Decays(Kind):
    """A pair of decays of running averages."""

    @override
    def check(self, name: str, value: Any) -> None:
        for i, beta in enumerate(self._pair(name, value)):
            DECAY.check(f"{name}[{i}]", beta)

    @override
    def now(self, name: str, value: Any, step: int) -> tuple[Any, ...]:
        return tuple(DECAY.now(name, beta, step) for beta in self._pair(name, value))

    def _pair(self, name: str, value: Any) -> tuple[Any, Any]:
        try:
            first, second = value
        except (TypeError, ValueError):
            raise ValueError(f"{name}={value!r}; expected two numbers in [0, 1)") from None
        return first, second


@dataclasses.dataclass(frozen=True)
class Count(Kind):
    """A whole number.

    Attributes:
        least: the lowest.
        optional: whether ``None`` stands for none.
    """

    least: int
    optional: bool = False

    @override
    def check(self, name: str, value: Any) -> None:
        if not (value is None and self.optional):
            whole_number(name, value, self.least)


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of several words."""

    words: tuple[str, ...]

    @override
    def check(self, name: str, value: Any) -> None:
        choose(name, value, self.words)

    @override
    def now(self, name: str, value: Any, step: int) -> Any:
        choose(f"a group's {name}", value, self.words)
        return value


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    @override
    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}; expected True or False")

    @override
    def now(self, name: str, value: Any, step: int) -> Any:
        self.check(f"a group's {name}", value)
        return value


POSITIVE = Number()
DECAY = Number("a number in [0, 1)", largest=1.0, below=1.0)
LIMIT = Number(optional=True)
DAMPING = Number(follows_steps=True, steered=True)

SHARED: dict[str, Kind] = {
    "lr": POSITIVE,
    "weight_decay": POSITIVE,
    "precondition": Choice(("all", "ode")),
    "fallback": Choice(("rule", "adam")),
}
"""Settings of groups whatever the rule."""


def setting(default: Any, kind: Kind, *, group: bool = False) -> Any:
    """A field of a rule.

    Args:
        default: its value by default.
        kind: what it may be.
        group: whether every parameter group may have its own.
    """
    return dataclasses.field(default=default, metadata={"kind": kind, "group": group})


def kinds(rule: Any, groups: bool = False) -> dict[str, Kind]:
    """What the settings of a rule, or of its groups alone, may be, by name."""
    return {
        field.name: field.metadata["kind"]
        for field in dataclasses.fields(rule)
        if "kind" in field.metadata and (field.metadata["group"] or not groups)
    }


def validate(settings: Mapping[str, Any], known: Mapping[str, Kind]) -> None:
    """Check settings by name.

    Raises:
        ValueError: a value is outside its range; the message names both.
    """
    for name, kind in known.items():
        kind.check(name, settings[name])


def in_force(group: Mapping[str, Any], known: Mapping[str, Kind], step: int) -> dict[str, Any]:
    """A group whose settings are plain numbers: those of one step.

    Args:
        group: as it stands; a damping may be a function of the step or a controller, and any
            number a tensor of one element.
        known: its settings.
        step: steps made so far.

    Raises:
        ValueError: what was written into the group is no number.
    """
    return {**group, **{name: kind.now(name, group[name], step) for name, kind in known.items()}}
