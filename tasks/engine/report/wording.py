"""Numbers as a reader sees them, and the columns that the console and the page share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tasks.engine.report.spread import Spread
from tasks.engine.report.summary import Row, Table

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: what stands above it.
        cell: the text for a row.
        console: whether the console, where space is short, shows it.
        page: whether the page shows it, which has tables of their own for some.
    """

    heading: str
    cell: Callable[[Row], str]
    console: bool = True
    page: bool = True


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be helped."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def spread(value: Spread, show: Callable[[float], str] = number) -> str:
    """The median, with the range in brackets where the seeds differ."""
    if value.count == 0:
        return NOTHING
    median, low, high = show(value.median), show(value.low), show(value.high)
    return median if low == median == high else f"{median} [{low}, {high}]"


def percent(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else outcome(value)


def outcome(value: float) -> str:
    """A final value; one that is infinite stands for a run that diverged."""
    return "diverged" if math.isinf(value) else number(value)


def until(value: float) -> str:
    """Seconds, steps, evaluations or ratios; an infinite one never happened."""
    return "never" if math.isinf(value) else number(value)


def metric_style(metric: str) -> Callable[[float], str]:
    """How values of a metric are written."""
    return percent if metric in ("accuracy", "success_rate") else outcome


def columns(table: Table) -> list[Column]:
    """The main table: one row a series."""
    metric = table.comparison.metric
    show = metric_style(metric)
    result = [
        Column("optimizer", lambda r: r.series.label),
        Column("seeds", lambda r: str(len(r.series.runs))),
        Column("ended", _outcomes, console=False),
        Column("train loss", lambda r: spread(r.train_loss, outcome)),
        Column(f"test {metric}", lambda r: spread(r.test_metric, show)),
        Column(
            f"test {metric} at best valid", lambda r: spread(r.selected_metric, show), console=False
        ),
        Column("seconds", lambda r: spread(r.seconds)),
        Column("steps", lambda r: spread(r.steps)),
        Column("NFE", lambda r: spread(r.nfe), console=False),
        Column("ms/step", lambda r: spread(r.step_seconds, lambda v: number(1000 * v))),
    ]
    if table.comparison.metric == "loss":
        result[4] = Column("test loss", lambda r: spread(r.test_metric, outcome))
    if table.loss_race is not None:
        result.append(Column("s to target", lambda r: _reach(r, "seconds"), page=False))
        result.append(Column("ratio", _ratio, page=False))
    return result


def race_columns(on_loss: bool) -> list[Column]:
    """The table of a race to a target."""
    return [
        Column("optimizer", lambda r: r.series.label),
        Column("reached", lambda r: _reached(r, on_loss)),
        Column("seconds", lambda r: _reach(r, "seconds", on_loss)),
        Column("steps", lambda r: _reach(r, "steps", on_loss)),
        Column("NFE", lambda r: _reach(r, "nfe", on_loss)),
        Column("ratio of seconds", lambda r: _ratio(r, on_loss)),
        Column("share of its whole run", lambda r: _share(r, on_loss)),
    ]


def race_sentence(table: Table, on_loss: bool) -> str:
    """What the target is and what the ratios divide by."""
    race = table.loss_race if on_loss else table.metric_race
    name = "training loss" if on_loss else f"test {table.comparison.metric}"
    show = number if on_loss else metric_style(table.comparison.metric)
    if race is None:
        return f"No first-order optimizer measured a {name} here, so there is no target."
    return (
        f"Target: the final {name} of {race.reference}, the best first-order optimizer here, "
        f"{spread(race.target, show)}, seed by seed. A ratio is an optimizer's seconds to that "
        f"target divided by those of {race.reference} on the same seed (below 1 is faster); the "
        f"last column divides by {race.reference}'s whole training time. Medians, with the range "
        "over seeds in brackets; 'never' counts as infinite. A target counts as reached at the "
        f"first measurement that shows it; they lie {spread(race.spacing)} s apart."
    )


def _outcomes(row: Row) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(row.outcomes.items()))


def _reach(row: Row, axis: str, on_loss: bool = True) -> str:
    reach = row.loss_race if on_loss else row.metric_race
    costs = {str(k): v for k, v in reach.cost.items()} if reach else {}
    return spread(costs[axis], until) if axis in costs else NOTHING


def _reached(row: Row, on_loss: bool) -> str:
    reach = row.loss_race if on_loss else row.metric_race
    return f"{reach.reached} of {reach.runs}" if reach else NOTHING


def _ratio(row: Row, on_loss: bool = True) -> str:
    reach = row.loss_race if on_loss else row.metric_race
    return spread(reach.ratio, until) if reach else NOTHING


def _share(row: Row, on_loss: bool) -> str:
    reach = row.loss_race if on_loss else row.metric_race
    return spread(reach.share, until) if reach else NOTHING
