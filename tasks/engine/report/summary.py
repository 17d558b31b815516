"""The report's numbers as tables: one row a series for reading, one row a run for checking."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.engine.records.clock import BUCKETS, TRAINING
from tasks.engine.records.metrics import Key
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import TRAIN_LOSS, Comparison, Series, find_curve
from tasks.engine.report.costs import step_cost
from tasks.engine.report.spread import Spread
from tasks.engine.report.targets import AXES, Race, Reach, final, race_on_loss, race_on_metric

Cell = str | float | int


@dataclass(frozen=True)
class Row:
    """One series of one comparison, with everything that a table says of it.

    Attributes:
        outcomes: how its runs ended, by number.
        train_loss: last measured training loss.
        test_metric: test metric at the end of training.
        selected_metric: test metric at the step with the best validation metric; selecting on test
            itself would flatter.
        loss_race: when it reaches the best first-order optimizer's final training loss.
        metric_race: when it reaches the best first-order optimizer's final test metric.
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
    loss_race: Reach | None
    metric_race: Reach | None


@dataclass(frozen=True)
class Table:
    """A comparison's rows, and the races that they refer to."""

    comparison: Comparison
    loss_race: Race | None
    metric_race: Race | None
    rows: tuple[Row, ...]


def tabulate(comparison: Comparison) -> Table:
    """All numbers of one comparison."""
    loss_race, metric_race = race_on_loss(comparison), race_on_metric(comparison)
    rows = (_row(comparison, s, loss_race, metric_race) for s in comparison.series)
    return Table(comparison, loss_race, metric_race, tuple(rows))


def _row(
    comparison: Comparison, series: Series, loss_race: Race | None, metric_race: Race | None
) -> Row:
    test: tuple[Key, ...] = (("test", comparison.metric),)
    higher = comparison.higher_is_better
    return Row(
        comparison=comparison,
        series=series,
        outcomes=Counter(run.outcome for run in series.runs),
        steps=Spread.of(float(run.steps) for run in series.runs),
        seconds=Spread.of(run.seconds for run in series.runs),
        nfe=Spread.of(run.nfe for run in series.runs),
        step_seconds=step_cost(series.runs),
        train_loss=final(series, TRAIN_LOSS),
        test_metric=final(series, test, higher=higher),
        selected_metric=Spread.of(_selected(run, comparison) for run in series.runs),
        loss_race=loss_race.reaches.get(series.label) if loss_race else None,
        metric_race=metric_race.reaches.get(series.label) if metric_race else None,
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


def summary_csv(tables: Iterable[Table]) -> str:
    """One row a series, as ``summary.csv``."""
    return as_csv([_summary_cells(row, table) for table in tables for row in table.rows])


def runs_csv(comparisons: Iterable[Comparison]) -> str:
    """One row a run, as ``runs.csv``."""
    return as_csv([_run_cells(c, run) for c in comparisons for s in c.series for run in s.runs])


def _summary_cells(row: Row, table: Table) -> dict[str, Cell]:
    comparison, series = row.comparison, row.series
    cells: dict[str, Cell] = {
        "task": comparison.task,
        "model": comparison.model,
        "data": comparison.provenance,
        "optimizer": series.optim,
        "label": series.label,
        "config_hash": series.runs[0].config_hash,
        "seeds": " ".join(str(run.seed) for run in series.runs),
        "outcomes": " ".join(f"{k}:{v}" for k, v in sorted(row.outcomes.items())),
        "metric": comparison.metric,
    }
    for name, spread in (
        ("steps", row.steps),
        ("seconds", row.seconds),
        ("nfe", row.nfe),
        ("step_seconds", row.step_seconds),
        ("final_train_loss", row.train_loss),
        ("final_test_metric", row.test_metric),
        ("test_metric_at_best_valid", row.selected_metric),
    ):
        cells.update(_spread_cells(name, spread))
    for bucket in BUCKETS:
        cells[f"ms_per_step_{bucket}"] = 1000 * step_cost(series.runs, (bucket,)).median
    for name, race, reach in (
        ("loss_target", table.loss_race, row.loss_race),
        ("metric_target", table.metric_race, row.metric_race),
    ):
        cells.update(_race_cells(name, race, reach))
    return cells


def _race_cells(name: str, race: Race | None, reach: Reach | None) -> dict[str, Cell]:
    never = Spread.of(())
    cells: dict[str, Cell] = {
        name: race.target.median if race else math.nan,
        f"{name}_reference": race.reference if race else "",
        f"{name}_reached": f"{reach.reached}/{reach.runs}" if reach else "",
    }
    for axis in AXES:
        cells.update(_spread_cells(f"{name}_{axis}", reach.cost[axis] if reach else never))
    cells.update(_spread_cells(f"{name}_ratio", reach.ratio if reach else never))
    cells.update(_spread_cells(f"{name}_share", reach.share if reach else never))
    return cells


def _spread_cells(name: str, spread: Spread) -> dict[str, Cell]:
    values = (spread.median, spread.low, spread.high)
    return {f"{name}_{part}": v for part, v in zip(("median", "min", "max"), values, strict=True)}


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
