"""Every column of every table, in one list: its value, how it is written, where it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tasks.engine.records.clock import BUCKETS
from tasks.engine.report.costs import step_cost, untimed_cost
from tasks.engine.report.formatting import NOTHING, metric_style, number, outcome, spread, until
from tasks.engine.report.statistics import Spread
from tasks.engine.report.summary import Cell, Table, TableRow, as_csv
from tasks.engine.report.targets import TargetOutcome, TimeToTarget

Place = Literal["console", "page", "loss target", "metric target", "costs", "markdown", "csv"]
"""A table: on the console, four of a section of the page, ``summary.md``, ``summary.csv``."""

Value = Spread | Cell | None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        headings: what stands above it in every table that shows it.
        value: what it says of a row; None for nothing.
        show: how a reader sees a number of it.
    """

    headings: Mapping[Place, str]
    value: Callable[[TableRow], Value]
    show: Callable[[float], str] = number

    def text(self, row: TableRow) -> str:
        """A row's cell for a reader."""
        value = self.value(row)
        if isinstance(value, Spread):
            return spread(value, self.show)
        if isinstance(value, float):
            return self.show(value)
        return NOTHING if value is None else str(value)

    def cells(self, row: TableRow) -> dict[str, Cell]:
        """A row's cells in the CSV file, three for a spread."""
        name, value = self.headings["csv"], self.value(row)
        if isinstance(value, Spread):
            parts = {"median": value.median, "min": value.low, "max": value.high}
            return {f"{name}_{part}": cell for part, cell in parts.items()}
        return {name: "" if value is None else value}


def columns(table: Table, place: Place) -> list[Column]:
    """The columns of one of a comparison's tables, from left to right."""
    results, costs = _results(table.comparison.metric), _costs()
    # A reader asks first how well, then how fast.
    middle = [*results, *costs] if place in ("console", "page") else [*costs, *results]
    targets = [
        *_target("loss target", table.time_to_loss, lambda r: r.time_to_loss, _LOSS_TARGET),
        *_target("metric target", table.time_to_metric, lambda r: r.time_to_metric, _METRIC_TARGET),
    ]
    every = [*_names(), *middle, *_buckets(table), *targets]
    return [column for column in every if place in column.headings]


_MAIN: tuple[Place, ...] = ("console", "page", "markdown")
_LOSS_TARGET: dict[str, dict[Place, str]] = {
    "seconds": {"console": "s to target"},
    "ratio": {"console": "ratio", "markdown": "ratio: train loss"},
    "share": {"markdown": "share: train loss"},
}
_METRIC_TARGET: dict[str, dict[Place, str]] = {"ratio": {"markdown": "ratio: test metric"}}


def summary_csv(tables: Iterable[Table]) -> str:
    """One row a series, as ``summary.csv``."""
    rows = []
    for table in tables:
        shown = columns(table, "csv")
        rows += [dict(item for c in shown for item in c.cells(row).items()) for row in table.rows]
    return as_csv(rows)


def _names() -> list[Column]:
    label = dict.fromkeys((*_MAIN, "loss target", "metric target", "costs"), "optimizer")
    return [
        Column({"csv": "task"}, lambda r: r.comparison.task),
        Column({"csv": "model"}, lambda r: r.comparison.model),
        Column({"markdown": "task"}, _title),
        Column({"markdown": "data", "csv": "data"}, lambda r: r.comparison.provenance),
        Column({"csv": "optimizer"}, lambda r: r.series.optim),
        Column(label | {"csv": "label"}, lambda r: r.series.label),
        Column({"csv": "config_hash"}, lambda r: r.series.runs[0].config_hash),
        Column(dict.fromkeys(_MAIN, "seeds"), lambda r: len(r.series.runs)),
        Column({"csv": "seeds"}, lambda r: " ".join(str(run.seed) for run in r.series.runs)),
        Column({"page": "ended"}, lambda r: _outcomes(r, "{1} {0}", ", ")),
        Column({"csv": "outcomes"}, lambda r: _outcomes(r, "{0}:{1}", " ")),
        Column({"csv": "metric"}, lambda r: r.comparison.metric),
    ]


def _results(metric: str) -> list[Column]:
    show = metric_style(metric)
    test = f"test {metric}"
    return [
        Column(
            {**dict.fromkeys(_MAIN, "train loss"), "csv": "final_train_loss"},
            lambda r: r.train_loss,
            outcome,
        ),
        Column(
            {"console": test, "page": test, "csv": "final_test_metric"},
            lambda r: r.test_metric,
            show,
        ),
        Column({"markdown": "test metric"}, lambda r: f"{metric} {spread(r.test_metric, show)}"),
        Column(
            {"page": f"{test} at best valid", "csv": "test_metric_at_best_valid"},
            lambda r: r.selected_metric,
            show,
        ),
    ]


def _costs() -> list[Column]:
    return [
        Column({"csv": "steps"}, lambda r: r.steps),
        Column(dict.fromkeys((*_MAIN, "csv"), "seconds"), lambda r: r.seconds),
        Column({"console": "steps", "page": "steps"}, lambda r: r.steps),
        Column({"page": "NFE", "csv": "nfe"}, lambda r: r.nfe),
        Column(
            {"console": "ms/step", "page": "ms/step", "csv": "step_seconds"},
            lambda r: r.step_seconds,
            lambda seconds: number(1000 * seconds),
        ),
    ]


def _buckets(table: Table) -> list[Column]:
    """Milliseconds of a step; the page leaves out buckets that nothing was spent in."""
    found = []
    for bucket in BUCKETS:
        value = partial(_bucket, bucket)
        headings: dict[Place, str] = {"csv": f"ms_per_step_{bucket}"}
        if any(value(row) > 0 for row in table.rows):
            headings["costs"] = bucket
        found.append(Column(headings, value, _spent))
    return [
        *found,
        Column({"costs": "training"}, lambda r: 1000 * r.step_seconds.median, _spent),
        Column({"costs": "outside"}, lambda r: 1000 * untimed_cost(r.series.runs).median, _spent),
    ]


def _target(
    place: Place,
    found: TimeToTarget | None,
    outcome_of: Callable[[TableRow], TargetOutcome | None],
    elsewhere: Mapping[str, Mapping[Place, str]],
) -> list[Column]:
    """The columns of one target.

    Args:
        place: its table on the page.
        found: the times to it, where there is a target.
        outcome_of: those of a row.
        elsewhere: what stands above a column in other tables, by its name in the CSV file.
    """
    name = place.replace(" ", "_")

    def of(
        value: Callable[[TargetOutcome], Value], missing: Value = None
    ) -> Callable[[TableRow], Value]:
        return lambda row: missing if (own := outcome_of(row)) is None else value(own)

    def column(key: str, heading: str, value: Callable[[TargetOutcome], Value]) -> Column:
        headings: dict[Place, str] = {place: heading, "csv": f"{name}_{key}"}
        # The console has no room for a target that nothing set.
        more = {p: h for p, h in elsewhere.get(key, {}).items() if found or p != "console"}
        return Column(headings | more, of(value, missing=Spread.of(())), until)

    return [
        Column({"csv": name}, lambda _: found.target.median if found else None),
        Column({"csv": f"{name}_reference"}, lambda _: found.baseline if found else None),
        Column({"csv": f"{name}_reached"}, of(lambda r: f"{r.reached}/{r.runs}")),
        Column({place: "reached"}, of(lambda r: f"{r.reached} of {r.runs}")),
        column("seconds", "seconds", lambda r: r.cost["seconds"]),
        column("steps", "steps", lambda r: r.cost["steps"]),
        column("nfe", "NFE", lambda r: r.cost["nfe"]),
        column("ratio", "ratio of seconds", lambda r: r.ratio),
        column("share", "share of its whole run", lambda r: r.budget_fraction),
    ]


def _title(row: TableRow) -> str:
    comparison = row.comparison
    return comparison.task if comparison.model == "node" else comparison.title


def _outcomes(row: TableRow, one: str, between: str) -> str:
    return between.join(one.format(*item) for item in sorted(row.outcomes.items()))


def _bucket(bucket: str, row: TableRow) -> float:
    return 1000 * step_cost(row.series.runs, (bucket,)).median


def _spent(milliseconds: float) -> str:
    return number(milliseconds) if milliseconds else NOTHING
