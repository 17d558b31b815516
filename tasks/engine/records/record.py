"""``run.json``: sealed when it is written, and read with its fields' types checked.

The seal is a digest of everything else in the file, so that a later change shows. Records of runs
that were made before there was one are read without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.common.files import sha256

SEAL = "seal"
FILES = "files"
"""Key of the digests of the files beside it, by name."""

IDENTITY = ("task", "model", "optim", "seed", "config_hash")


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"  # all epochs or steps that were asked for
    TARGET_REACHED = "target_reached"  # the validation metric got to train.target
    BUDGET = "budget"  # train.max_seconds ran out
    DIVERGED = "diverged"  # a loss that is not finite, or a solve that failed
    INTERRUPTED = "interrupted"  # by a signal, or killed: the same command resumes
    ERROR = "error"  # anything else; the same command tries again


#: Outcomes that the same command does not run again.
FINISHED = (Outcome.COMPLETED, Outcome.TARGET_REACHED, Outcome.BUDGET, Outcome.DIVERGED)


class RecordError(ValueError):
    """A ``run.json`` that is damaged; the message says how."""


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, plain JSON values, with its seal."""
    return {**record, SEAL: _seal(record)}


def parse_record(text: str) -> dict[str, Any]:
    """The content of a ``run.json``, whose seal fits where it has one.

    Raises:
        RecordError: it is no JSON object, or was changed after it was written.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"run.json cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise RecordError("run.json is not an object")
    if SEAL in record and record[SEAL] != _seal(record):
        raise RecordError("run.json was changed or damaged after the run wrote it")
    return record


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run's ``run.json``, every field of the type that it must have.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"run.json cannot be read: {error}") from error
    record = parse_record(text)
    for key in IDENTITY:
        if key not in record:
            raise RecordError(f"run.json has no {key!r}")
    outcome = record.get("outcome")
    if isinstance(outcome, str) and outcome not in list(Outcome):
        raise RecordError(f"run.json holds something unexpected: outcome {outcome!r}")
    for key, (fits, expected) in _FIELDS.items():
        value = record.get(key)
        if key in record and not fits(value) and (value is not None or key in IDENTITY):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise RecordError(
                f"run.json holds something unexpected: {key} must be {expected}, found {shown}"
            )
    return record


def record_or_empty(path: Path) -> dict[str, Any]:
    """As :func:`read_record`; empty where there is no file, or a damaged one."""
    try:
        return read_record(path)
    except (FileNotFoundError, RecordError):
        return {}


def _seal(record: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in record.items() if key != SEAL}
    return sha256(json.dumps(kept, sort_keys=True).encode())


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _mapping(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(fits(item) for item in value.values())


def _any(value: object) -> bool:
    return True


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("task", "model", "optim", "config_hash"), (_text, "text")),
    **dict.fromkeys(("outcome", "message", "metric", "provenance"), (_text, "text")),
    **dict.fromkeys(("seed", "steps", "steps_per_epoch"), (_count, "a whole number, at least 0")),
    **dict.fromkeys(("seconds", "wall"), (_seconds, "a number, at least 0")),
    "higher_is_better": (lambda value: isinstance(value, bool), "true or false"),
    "buckets": (lambda value: _mapping(value, _number), "seconds by name"),
    "environment": (lambda value: _mapping(value, _any), "a mapping"),
    "files": (lambda value: _mapping(value, _text), "digests by file"),
    "best": (lambda value: _mapping(value, _any), "a mapping"),
    "final": (
        lambda value: _mapping(value, lambda part: _mapping(part, _number)),
        "numbers by split and metric",
    ),
}
