"""The learning rate's course over a run: its settings, and which of them each schedule uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tasks.common.checks import Section, choices

SCHEDULES = ("constant", "linear", "cosine", "multistep")
_FALLING = ("linear", "cosine")


@dataclass(frozen=True)
class ScheduleSettings(Section):
    """How the learning rate moves over a run; ``conf/config.yaml`` explains each key."""

    name: str = "constant"
    warmup_steps: int = 0
    warmup: float = 0.0
    total_steps: int | None = None
    end: float = 1.0
    final_factor: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(choices("name", self.name, SCHEDULES))
        self._at_least(0, "warmup_steps", "warmup", "final_factor")
        if self.warmup >= 1 or (self.warmup and self.warmup_steps):
            raise ValueError(
                f"warmup={self.warmup!r}: must be a share of the run below 1, and not beside "
                "warmup_steps."
            )
        if not self.warmup < self.end <= 1 or (self.end < 1 and self.total_steps is not None):
            raise ValueError(
                f"end={self.end!r}: must be a share of the run above warmup={self.warmup:g}, at "
                "most 1, and not beside total_steps."
            )
        self._at_least(1, "total_steps")
        self._at_least(0, "gamma", strictly=True)
        if any(epoch < 1 for epoch in self.milestones):
            raise ValueError(f"milestones={list(self.milestones)}: epochs must be at least 1.")
        for why in idle(vars(self)).values():
            raise ValueError(f"{why}.")
        if self.name == "multistep" and not self.milestones:
            raise ValueError("milestones=[]: multistep falls at these epochs, so name some.")


_DEFAULTS = {field.name: field.default for field in fields(ScheduleSettings)}


def idle(schedule: Mapping[str, Any]) -> dict[str, str]:
    """Settings of other schedules than the one chosen, and what is wrong with each, by key."""
    name = schedule.get("name", _DEFAULTS["name"])
    owners = {
        "milestones": ("multistep",),
        "gamma": ("multistep",),
        "final_factor": _FALLING,
        "end": _FALLING,
        "total_steps": SCHEDULES if schedule.get("warmup") else _FALLING,
    }
    found = {}
    for key, names in owners.items():
        value = schedule.get(key, _DEFAULTS[key])
        shown = list(value) if isinstance(value, tuple) else value
        if shown != _default(key) and name not in names:
            whose = " and ".join(f"name={name}" for name in names)
            found[key] = f"{key}={shown}: is of {whose}, and name={name} here"
    return found


def without_idle(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A job's configuration without settings of other schedules, which its sweep has for others.

    Args:
        config: resolved, but not checked.

    Returns:
        The configuration as if they had not been given, and what :func:`idle` says of them.
    """
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return dict(config), {}
    found = idle(schedule)
    return {**config, "schedule": {**schedule, **{key: _default(key) for key in found}}}, found


def _default(key: str) -> Any:
    """A default as a configuration has it."""
    value = _DEFAULTS[key]
    return list(value) if isinstance(value, tuple) else value
