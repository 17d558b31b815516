"""What experiments plan, composed once for all tests that only read it."""

from __future__ import annotations

from functools import cache

from scripts.jobs import Job, plan


@cache
def planned(choice: str) -> tuple[Job, ...]:
    """The runs of an ``experiment=`` choice with seed 0."""
    return tuple(plan([choice], [0], None))
