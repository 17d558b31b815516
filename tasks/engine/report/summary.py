"""The report's numbers as tables: one row a series for reading, one row a run for checking."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.engine.records.clock import BUCKETS, TRAINING
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison, Series, find_curve
from tasks.engine.report.costs import step_cost
from tasks.engine.report.statistics import Spread
from tasks.engine.report.targets import (
    LOSS,
    TargetOutcome,
    TimeToTarget,
    metric_goal,
    time_to_target,
)

Cell = str | float | int


@dataclass(frozen=True)
class TableRow:
    """One series of one comparison, with everything that a table says of it.

    Attributes:
        outcomes: how its runs ended, by number.
        train_loss: last measured training loss.
        test_metric: test metric at the end of training.
        selected_metric: test metric at the step with the best validation metric; selecting on test
            itself would flatter.
        time_to_loss: when it reaches the best first-order optimizer's final training loss.
        time_to_metric: when it reaches the best first-order optimizer's final test metric.
    """

    comparison: Comparison
    series: Series
    outcomes: Mapping[str, int]
    steps: Spread
    seconds: Spread
    nfe: Spread
    step_seconds: Spread
    train_loss: Spread
    test_metric: Spread
    selected_metric: Spread
    time_to_loss: TargetOutcome | None
    time_to_metric: TargetOutcome | None


@dataclass(frozen=True)
class Table:
    """A comparison's rows, and the targets that they refer to."""

    comparison: Comparison
    time_to_loss: TimeToTarget | None
    time_to_metric: TimeToTarget | None
    rows: tuple[TableRow, ...]


def tabulate(comparison: Comparison) -> Table:
    """All numbers of one comparison."""
    loss = time_to_target(comparison, LOSS)
    metric = time_to_target(comparison, metric_goal(comparison))
    rows = tuple(_row(comparison, s, loss, metric) for s in comparison.series)
    return Table(comparison, loss, metric, rows)


def _row(
    comparison: Comparison, series: Series, loss: TimeToTarget | None, metric: TimeToTarget | None
) -> TableRow:
    return TableRow(
        comparison=comparison,
        series=series,
        outcomes=Counter(run.outcome for run in series.runs),
        steps=Spread.of(float(run.steps) for run in series.runs),
        seconds=Spread.of(run.seconds for run in series.runs),
        nfe=Spread.of(run.nfe for run in series.runs),
        step_seconds=step_cost(series.runs),
        train_loss=LOSS.final(series.runs),
        test_metric=metric_goal(comparison).final(series.runs),
        selected_metric=Spread.of(_selected(run, comparison) for run in series.runs),
        time_to_loss=loss.outcomes.get(series.label) if loss else None,
        time_to_metric=metric.outcomes.get(series.label) if metric else None,
    )


def _selected(run: Run, comparison: Comparison) -> float:
    """The test metric where the validation metric was best."""
    valid = find_curve(run, (("valid", comparison.metric),))
    test = find_curve(run, (("test", comparison.metric),))
    if valid is None or test is None:
        return math.nan
    sign = -1.0 if comparison.higher_is_better else 1.0
    measured = dict(zip(test.steps.tolist(), test.values.tolist(), strict=True))
    pairs = zip(valid.steps.tolist(), (sign * valid.values).tolist(), strict=True)
    scored = [(value, step) for step, value in pairs if step in measured and math.isfinite(value)]
    return float(measured[min(scored)[1]]) if scored else math.nan


def runs_csv(comparisons: Iterable[Comparison]) -> str:
    """One row a run, as ``runs.csv``."""
    return as_csv([_run_cells(c, run) for c in comparisons for s in c.series for run in s.runs])


def _run_cells(comparison: Comparison, run: Run) -> dict[str, Cell]:
    test = find_curve(run, (("test", comparison.metric),))
    loss = find_curve(run, TRAIN_LOSS)
    cells: dict[str, Cell] = {
        "task": run.task,
        "model": run.model,
        "optimizer": run.optim,
        "config_hash": run.config_hash,
        "seed": run.seed,
        "data": run.provenance,
        "outcome": run.outcome,
        "message": run.message,
        "steps": run.steps,
        "seconds": run.seconds,
        "nfe": run.nfe,
        "final_train_loss": loss.final if loss else math.nan,
        "metric": comparison.metric,
        "final_test_metric": test.final if test else math.nan,
        "training_seconds": sum(run.buckets.get(b, 0.0) for b in TRAINING),
    }
    cells.update({f"{bucket}_seconds": run.buckets.get(bucket, 0.0) for bucket in BUCKETS})
    return cells


def as_csv(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows with the columns of the first, under a line of their names; nothing without rows."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _plain(value: Cell) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
