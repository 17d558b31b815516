"""Workloads: tasks in the sizes they are raced at, each with a budget and a target.

A workload is a file of ``conf/target``, so that ``python run.py target=mnist optim=adamw`` trains
it. The file sets the task's sizes, the training seconds (``train.max_seconds``, on one processor),
and under ``workload`` its target, which :func:`fix` writes there once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context
from typing import Any

import yaml

from tasks.common.checks import ConfigError, require_choice
from tasks.engine.config.composing import CONF
from tasks.engine.records.results import write_file

FOLDER = CONF / "target"

_NO_TARGET = re.compile(r"^(  target:) null\b.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A validation loss to reach.

    Attributes:
        loss: median over seeds of the lowest validation loss of the best first-order optimizer.
        low: the smallest over seeds.
        high: the largest.
        optim: that optimizer.
        date: when it was fixed, ``YYYY-MM-DD``.
        command: what fixes it.
    """

    loss: float
    low: float
    high: float
    optim: str
    date: str
    command: str


@dataclass(frozen=True)
class Workload:
    """What optimizers are raced on.

    Attributes:
        name: of its file.
        task: that it is a size of.
        seconds: budget of a run, training seconds on one processor.
        about: what it is, in a sentence.
        target: the validation loss to reach, where it is fixed.
        test_samples: of the test split, that it is measured on during training; all by default.
    """

    name: str
    task: str
    seconds: float
    about: str
    target: Target | None = None
    test_samples: int | None = None

    @property
    def goal(self) -> float | None:
        """The validation loss to reach, where it is fixed."""
        return None if self.target is None else self.target.loss

    @classmethod
    def read(cls, name: str) -> Workload:
        """The workload of a file.

        Raises:
            ConfigError: the file is no workload's.
        """
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        try:
            part = content["workload"]
            target = None if part["target"] is None else Target(**part["target"])
            tasks = [one.get("override /task") for one in content["defaults"]]
            (task,) = (found for found in tasks if found)
            seconds = float(content["train"]["max_seconds"])
            samples = content["train"].get("eval_test_samples")
            return cls(name, task, seconds, part["about"], target, samples)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"conf/target/{name}.yaml: is no workload ({type(error).__name__}: {error}). Copy "
                "another one: it overrides /task, sets train.max_seconds, workload.about and "
                "workload.target."
            ) from error


def names() -> list[str]:
    """All workloads."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "none")


def read(wanted: list[str] | None = None) -> list[Workload]:
    """Workloads by name, all of them by default.

    Raises:
        ConfigError: there is none of a name.
    """
    for name in wanted or []:
        require_choice("--workloads", name, names())
    return [Workload.read(name) for name in wanted or names()]


def fix(workload: Workload, target: Target) -> None:
    """Write a target into the workload's file, where none stands yet.

    Raises:
        ConfigError: the file has a target, or no place for one.
    """
    path = FOLDER / f"{workload.name}.yaml"
    text = path.read_text(encoding="utf-8")
    values: Mapping[str, Any] = asdict(target)
    block = yaml.safe_dump(dict(values), sort_keys=False, width=1000)
    lines = "".join(f"    {line}\n" for line in block.splitlines())
    fixed, count = _NO_TARGET.subn(lambda found: f"{found[1]}\n{lines}", text)
    if count != 1:
        raise ConfigError(f"{path}: has no line `  target: null`, so that its target stays.")
    write_file(path, fixed.encode())


def rounded_up(loss: float) -> float:
    """To four digits and never below, or the run that a target is of would not reach it."""
    context = Context(prec=4, rounding=ROUND_CEILING)
    return float(context.create_decimal_from_float(loss))
