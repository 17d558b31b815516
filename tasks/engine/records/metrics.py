"""``metrics.jsonl``: one measurement a line, and the curves that they make."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Axis = Literal["seconds", "cpu_seconds", "steps", "nfe"]
"""What a curve is drawn against: training clock, by the wall or on processors, optimizer steps, or
evaluations of the field."""

Key = tuple[str, str]
"""Split and metric of a measurement."""


class Measurement(TypedDict):
    """One line; a value that is not finite is written as null, and read as NaN."""

    step: int
    epoch: int
    split: str
    metric: str
    value: float
    seconds: float
    cpu_seconds: float
    wall: float
    nfe_forward: int
    nfe_backward: int


@dataclass(frozen=True)
class Curve:
    """One metric of one run, in the order of its steps.

    Attributes:
        steps: optimizer steps done at each measurement, shape (K,).
        seconds: training clock at each measurement, in seconds, shape (K,).
        cpu_seconds: seconds on processors while it ran, shape (K,); NaN in files without them.
        nfe_forward: field evaluations so far, forward, shape (K,).
        nfe_backward: the same, backward.
        values: the measured values, shape (K,); may hold NaN where a run diverged.
    """

    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]
    cpu_seconds: NDArray[np.float64]
    nfe_forward: NDArray[np.float64]
    nfe_backward: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, measurements: Mapping[int, Measurement]) -> Curve:
        """The curve of one key's measurements, by step."""
        ordered = [cls._row(one) for _, one in sorted(measurements.items())]
        return cls(*np.array(ordered, dtype=np.float64).T)

    @staticmethod
    def _row(one: Measurement) -> tuple[float, ...]:
        times = one["step"], one["seconds"], one["cpu_seconds"]
        return *times, one["nfe_forward"], one["nfe_backward"], one["value"]

    @property
    def nfe(self) -> NDArray[np.float64]:
        """Field evaluations so far, forward and backward together, shape (K,)."""
        return self.nfe_forward + self.nfe_backward

    def along(self, axis: Axis) -> NDArray[np.float64]:
        """The measurements' positions on one axis, shape (K,)."""
        found: NDArray[np.float64] = getattr(self, axis)
        return found

    def finite(self) -> Curve:
        """The same curve without the measurements that are NaN or infinite."""
        return self.take(np.isfinite(self.values))

    def take(self, keep: NDArray[np.bool_]) -> Curve:
        """Some of its measurements."""
        return Curve(*(getattr(self, field.name)[keep] for field in fields(self)))

    @property
    def final(self) -> float:
        """The last measured value; NaN where there is none."""
        return float(self.values[-1]) if len(self.values) else math.nan


def as_lines(measurements: Iterable[Measurement]) -> str:
    """Measurements as lines of the file."""
    return "".join(json.dumps(finite(one)) + "\n" for one in measurements)


def parse_line(line: bytes) -> Measurement:
    """A line of the file; counters of evaluations that are missing are 0.

    Raises:
        ValueError: it is damaged.
    """
    try:
        row = json.loads(line)
        return {
            "step": _count(row["step"]),
            "epoch": row.get("epoch", 0),
            "split": str(row["split"]),
            "metric": str(row["metric"]),
            "value": number(row["value"]),
            "seconds": number(row["seconds"]),
            "cpu_seconds": number(row.get("cpu_seconds")),
            "wall": number(row.get("wall")),
            "nfe_forward": int(number(row.get("nfe_forward"), 0.0)),
            "nfe_backward": int(number(row.get("nfe_backward"), 0.0)),
        }
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no measurement: {error}") from error


def read_curves(content: bytes) -> tuple[dict[Key, Curve], int]:
    """The curves in a file, and how many of its lines are damaged.

    A later measurement of the same step replaces an earlier one.
    """
    found: dict[Key, dict[int, Measurement]] = defaultdict(dict)
    damaged = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            one = parse_line(line)
        except ValueError:
            damaged += 1
        else:
            found[one["split"], one["metric"]][one["step"]] = one
    return {key: Curve.of(measurements) for key, measurements in found.items()}, damaged


def finite(value: Any) -> Any:
    """The same nested value with null where a number is not finite, as JSON wants it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def number(value: object, default: float = math.nan) -> float:
    """A number as JSON has it, null as NaN.

    Raises:
        ValueError: it is no number.
    """
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"expected a number, found {value!r}")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"expected a number of steps, found {value!r}")
