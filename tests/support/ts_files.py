"""Writes small `.ts` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEADER = """# a comment
@problemName Small
@timeStamps false
@missing {missing}
@univariate false
@dimensions {channels}
@equalLength {equal}
{length}@classLabel true {classes}
@data
"""


def write_ts(
    path: Path,
    cases: Sequence[str],
    *,
    channels: int = 2,
    classes: str = "a b",
    equal: str = "false",
    missing: str = "true",
    length: str = "",
) -> Path:
    """Write cases such as ``"1,2,3:4,5,6:a"`` under a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = HEADER.format(
        channels=channels,
        classes=classes,
        equal=equal,
        missing=missing,
        length=f"@seriesLength {length}\n" if length else "",
    )
    path.write_text(header + "\n".join(cases) + "\n")
    return path
