"""The benchmark's tables as a file, ``ratios.csv``: written, and read again where runs are gone.

Runs are large and stay on the machine that made them. A ratio compares runs of one workload on one
machine, so that workloads which were run on different ones can still stand in one table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.ranking import workloads
from scripts.ranking.scores import Row, Standing
from scripts.ranking.workloads import Workload
from tasks.common.checks import ConfigError
from tasks.engine.report.summary import Cell, as_csv

RATIOS = "ratios.csv"

Standings = Mapping[str, Sequence[Standing]]
"""By track: tables of workloads."""


def as_text(standings: Standings) -> str:
    """The file's content: a line an optimizer, workload and track."""
    return as_csv(
        [
            _cells(track, one, row)
            for track, found in standings.items()
            for one in found
            for row in one.rows
        ]
    )


def kept(path: Path) -> dict[str, list[Standing]]:
    """The tables in a file, those of workloads whose targets have changed left out.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return {}
    known = workloads.names()
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                groups.setdefault((line["track"], line["workload"]), []).append(line)
        found: dict[str, list[Standing]] = {}
        for (track, name), lines in groups.items():
            if name in known and (one := _standing(Workload.read(name), lines)) is not None:
                found.setdefault(track, []).append(one)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: is damaged ({type(error).__name__}: {error}). Restore it, or remove it."
        ) from error
    return found


def beside(made: Standings, old: Standings) -> dict[str, list[Standing]]:
    """New tables, and old ones of workloads that have no new one; tracks without any left out."""
    found = {}
    for track in sorted({*made, *old}):
        tables = {one.workload.name: one for one in (*old.get(track, ()), *made.get(track, ()))}
        if tables:
            found[track] = [tables[name] for name in sorted(tables)]
    return found


def _cells(track: str, one: Standing, row: Row) -> dict[str, Cell]:
    return {
        "track": track,
        "workload": one.workload.name,
        "optimizer": row.optim,
        "colour": row.colour,
        "settings": row.settings,
        "seeds": row.seeds,
        "target_loss": one.target.loss,
        "reached": row.reached,
        "cpu_seconds_to_target": row.seconds,
        "baseline": one.baseline,
        "ratio": row.ratio,
        "ratio_low": row.interval[0],
        "ratio_high": row.interval[1],
        "wall_ratio": row.wall_ratio,
        "best_valid_loss": row.best,
        "test_metric": row.metric,
        "test_at_target": row.test_at_target,
        "test_at_best": row.test_at_best,
        "test_at_end": row.test_at_end,
        "test_no_worse": str(row.no_worse).lower(),
        "ms_per_step": 1000 * row.step_seconds,
    }


def _standing(workload: Workload, lines: Sequence[Mapping[str, str]]) -> Standing | None:
    target = workload.target
    if target is None or any(_number(x["target_loss"]) != target.loss for x in lines):
        return None
    return Standing(workload, target, lines[0]["baseline"], tuple(map(_row, lines)))


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        optim=line["optimizer"],
        colour=line["colour"],
        settings=line["settings"],
        seeds=int(line["seeds"]),
        reached=int(line["reached"]),
        seconds=_number(line["cpu_seconds_to_target"]),
        ratio=_number(line["ratio"]),
        interval=(_number(line["ratio_low"]), _number(line["ratio_high"])),
        wall_ratio=_number(line["wall_ratio"]),
        metric=line["test_metric"],
        test_at_target=_number(line["test_at_target"]),
        test_at_best=_number(line["test_at_best"]),
        test_at_end=_number(line["test_at_end"]),
        best=_number(line["best_valid_loss"]),
        no_worse={"true": True, "false": False}[line["test_no_worse"]],
        step_seconds=_number(line["ms_per_step"]) / 1000,
    )


def _number(text: str) -> float:
    return float(text) if text else math.nan
