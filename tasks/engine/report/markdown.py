"""All comparisons of a results folder in one table, as ``summary.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.engine.report.summary import Row, Table
from tasks.engine.report.wording import NOTHING, metric_style, outcome, spread, until

_HEADINGS = (
    "task",
    "data",
    "optimizer",
    "seeds",
    "seconds",
    "train loss",
    "test metric",
    "ratio: train loss",
    "share: train loss",
    "ratio: test metric",
)


def summary_markdown(tables: Sequence[Table]) -> str:
    """One row a task and optimizer: where it ends, and how soon it is where first order ends."""
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    lines += [_line(_cells(table, row)) for table in tables for row in table.rows]
    return "\n".join([*lines, "", *_notes(tables)]) + "\n"


def _cells(table: Table, row: Row) -> list[str]:
    comparison = table.comparison
    name = comparison.task if comparison.model == "node" else comparison.title
    shown = spread(row.test_metric, metric_style(comparison.metric))
    loss, measured = row.loss_race, row.metric_race
    return [
        name,
        comparison.provenance,
        row.series.label,
        str(len(row.series.runs)),
        spread(row.seconds),
        spread(row.train_loss, outcome),
        f"{comparison.metric} {shown}",
        NOTHING if loss is None else spread(loss.ratio, until),
        NOTHING if loss is None else spread(loss.share, until),
        NOTHING if measured is None else spread(measured.ratio, until),
    ]


def _notes(tables: Iterable[Table]) -> list[str]:
    references = "; ".join(
        f"{table.comparison.title}: {race.reference} {spread(race.target)}"
        for table in tables
        if (race := table.loss_race) is not None
    )
    notes = [
        "Medians over seeds, with the range in brackets. A ratio is an optimizer's training "
        "seconds to the best first-order optimizer's final value, over that optimizer's own "
        "seconds to it on the same seed: below 1 is faster. A share is over that optimizer's whole "
        "training time instead."
    ]
    if references:
        notes.append(f"The best first-order optimizers and their training losses: {references}.")
    return notes


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
