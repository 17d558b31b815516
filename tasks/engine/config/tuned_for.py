"""How long the runs were that tuned settings were found in, and whether another is as long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.common.checks import Section


@dataclass(frozen=True)
class TunedFor(Section):
    """Length of the runs in which tuned settings were found; ``conf/config.yaml`` explains it."""

    steps: int | None = None
    seconds: float | None = None
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        self._at_least(1, "steps")
        self._at_least(0, "seconds", strictly=True)

    def other_length(
        self, steps: int | None, seconds: float | None, clock: str = "wall"
    ) -> str | None:
        """A sentence to a run of less than half or more than twice the length; else ``None``.

        Args:
            steps: where the run ends, ``None`` where it has no such limit.
            seconds: the same, of its training clock.
            clock: which one that is; seconds of the other do not compare.
        """
        limits = [(steps, self.steps), (seconds, self.seconds if clock == self.clock else None)]
        ratios = [limit / found for limit, found in limits if limit and found]
        shortest = min(ratios, default=1.0)
        # A run ends at its first limit: one that cannot be compared may come before all others.
        unknown = any(limit and not found for limit, found in limits)
        if 0.5 <= shortest <= 2 or (shortest > 2 and unknown):
            return None
        found = " or ".join(
            f"{value:g} {unit}"
            for value, unit in ((self.steps, "steps"), (self.seconds, "s"))
            if value
        )
        return (
            f"its tuned settings were found in runs of {found}, and it is "
            f"{'more than twice' if shortest > 2 else 'less than half'} as long: search again with "
            "python -m scripts.tune, or leave them out with tuned=none."
        )
