"""All comparisons of a results folder in one table, as ``summary.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.engine.report.columns import columns
from tasks.engine.report.formatting import spread
from tasks.engine.report.summary import Table


def summary_markdown(tables: Sequence[Table]) -> str:
    """One row a task and optimizer: where it ends, and how soon it is where first order ends.

    Args:
        tables: at least one.
    """
    headings = [column.headings["markdown"] for column in columns(tables[0], "markdown")]
    rows: list[list[str]] = []
    for table in tables:
        shown = columns(table, "markdown")
        rows += [[column.text(row) for column in shown] for row in table.rows]
    return "\n".join([markdown_table(headings, rows), "", *_notes(tables)]) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Headings and rows as lines of a table, without a last line break."""
    return "\n".join(map(_line, [headings, ["---"] * len(headings), *rows]))


def _notes(tables: Iterable[Table]) -> list[str]:
    baselines = "; ".join(
        f"{table.comparison.title}: {found.baseline} {spread(found.target)}"
        for table in tables
        if (found := table.time_to_loss) is not None
    )
    notes = [
        "Medians over seeds, with the range in brackets. A ratio is an optimizer's training "
        "seconds to the best first-order optimizer's final value, over that optimizer's own "
        "seconds to it on the same seed: below 1 is faster. A share is over that optimizer's whole "
        "training time instead."
    ]
    if baselines:
        notes.append(f"The best first-order optimizers and their training losses: {baselines}.")
    return notes


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
